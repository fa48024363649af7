"""Keys of a backend that one engine kind has, as frozen values (model.settings)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from arbiterd.model.keys import ARBITER_ONLY, Count, Form, Key


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """vLLM's own keys. None: the flag is not ours, the command may carry it.

    ``served_names``: what clients call the model where the operator says so (--served-model-name,
    ``models``, or the short name of a snapshot path), the first is what vLLM answers with; () when
    the model goes by its own name. ``lora_names``: adapters of --lora-modules, which the command tells
    already. ``config_words``: what a ``--config FILE`` in the command holds, as options.
    """

    max_model_len: Annotated[
        int | None, Form.COUNT, Key("tokens of a request; default: the model's own", shown="8192")
    ] = None
    max_num_seqs: Annotated[
        int | None, Form.COUNT, Key("requests in one batch; default: vLLM's own", shown="256")
    ] = None
    sleep: Annotated[bool, Key("may be put to sleep instead of stopped: switching.md")] = False
    served_names: tuple[str, ...] = ()
    lora_names: Annotated[tuple[str, ...], ARBITER_ONLY] = ()
    config_words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OllamaOptions:
    """Ollama's own keys."""

    max_loaded_models: Annotated[Count, Key("models in memory at a time")] = 1
    parallel: Annotated[Count, Key("requests of one model at a time")] = 1
    keep_alive_s: Annotated[
        float, Form.KEEP_ALIVE, Key("how long a model stays without requests; -1: for ever")
    ] = 600.0
    context_length: Annotated[Count, Key("tokens")] = 8192


@dataclass(frozen=True, slots=True)
class Batching:
    """TensorFlow Serving's BatchingParameters; None or (): TensorFlow's own default. Absent as a whole
    means that batching stays off. ``text``: the operator's own file as it was read, "" for a table.
    """

    max_batch_size: Annotated[int | None, Form.COUNT, Key()] = None
    max_enqueued_batches: Annotated[int | None, Form.COUNT, Key()] = None
    batch_timeout_micros: Annotated[int | None, Form.WHOLE, Key()] = None
    num_batch_threads: Annotated[int | None, Form.COUNT, Key()] = None
    thread_pool_name: Annotated[str | None, Form.TEXT, Key()] = None
    enable_large_batch_splitting: Annotated[bool | None, Key()] = None
    max_execution_batch_size: Annotated[int | None, Form.COUNT, Key()] = None
    allowed_batch_sizes: Annotated[tuple[int, ...], Form.COUNTS, Key()] = ()
    pad_variable_length_inputs: Annotated[bool | None, Key()] = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class TensorflowOptions:
    """TensorFlow Serving's own keys."""

    memory_growth: Annotated[bool, Key("grow as needed instead of taking the cap at once")] = False
    batching: Annotated[
        Batching | None,
        Form.READ_APART,
        Key(
            "a table like this, or the path of a file",
            shown="{ max_batch_size = 32, max_enqueued_batches = 100 }",
        ),
    ] = None
