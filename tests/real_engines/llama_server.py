"""llama.cpp's own server by xllamacpp, over a tiny random Llama: ``python llama_server.py PORT FOLDER``.
Run by the interpreter of .venv-llama.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

WIDTH, LAYERS, HEADS, FEED, CONTEXT = 64, 2, 2, 128, 512


def write(path: Path) -> None:
    """A GGUF with random weights and an SPM vocabulary of bytes and a few words."""
    import gguf  # type: ignore[import-not-found]
    import numpy as np

    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", *"abcdefghijklmnopqrstuvwxyz", *(f"▁w{number}" for number in range(200))]
    kinds = [2, 3, 3, *([6] * 256), *([1] * (len(words) - 259))]
    one = gguf.GGUFWriter(str(path), "llama")
    one.add_context_length(CONTEXT)
    one.add_embedding_length(WIDTH)
    one.add_block_count(LAYERS)
    one.add_feed_forward_length(FEED)
    one.add_head_count(HEADS)
    one.add_head_count_kv(HEADS)
    one.add_layer_norm_rms_eps(1e-5)
    one.add_rope_dimension_count(WIDTH // HEADS)
    one.add_vocab_size(len(words))
    one.add_tokenizer_model("llama")
    one.add_token_list([word.encode() for word in words])
    one.add_token_scores([-float(number) for number in range(len(words))])
    one.add_token_types(kinds)
    one.add_bos_token_id(1)
    one.add_eos_token_id(2)
    random = np.random.default_rng(1)

    def tensor(name: str, *shape: int) -> None:
        one.add_tensor(name, (random.standard_normal(shape) * 0.05).astype(np.float32))

    tensor("token_embd.weight", len(words), WIDTH)
    tensor("output.weight", len(words), WIDTH)
    one.add_tensor("output_norm.weight", np.ones(WIDTH, dtype=np.float32))
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            one.add_tensor(f"{at}.{norm}.weight", np.ones(WIDTH, dtype=np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"{at}.{name}.weight", WIDTH, WIDTH)
        tensor(f"{at}.ffn_gate.weight", FEED, WIDTH)
        tensor(f"{at}.ffn_up.weight", FEED, WIDTH)
        tensor(f"{at}.ffn_down.weight", WIDTH, FEED)
    one.write_header_to_file()
    one.write_kv_data_to_file()
    one.write_tensors_to_file()
    one.close()


def main() -> None:
    """Serve until killed."""
    import xllamacpp  # type: ignore[import-not-found]

    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    model = folder / "tiny.gguf"
    if not model.exists():
        write(model)
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = CONTEXT
    params.n_parallel = 4
    params.warmup = False
    params.model_alias = {"tiny"}
    server = xllamacpp.Server(params)
    threading.Event().wait()
    del server


if __name__ == "__main__":
    main()
