"""A tiny Llama for tests: random weights (--load-format dummy), a tokenizer trained on four sentences.
Run by the interpreter of .venv-vllm, which has tokenizers: ``python model.py FOLDER``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}
SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "three engines share a card and one of them is reined in",
    "whoever asks for more memory than it was given is told so",
    "0 1 2 3 4 5 6 7 8 9",
]


def write(folder: Path) -> None:
    """Write config.json, tokenizer.json and tokenizer_config.json."""
    from tokenizers import ByteLevelBPETokenizer  # type: ignore[import-not-found]

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(SENTENCES, vocab_size=512, special_tokens=["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
