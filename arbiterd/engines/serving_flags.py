"""The flags of tensorflow_model_server, which says nothing of those it does not know.

Names of tensorflow/serving, model_servers/main.cc (July 2026). An unknown argument is printed to its
log and serving goes on; a value is only read after ``=``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from arbiterd.engines.base import CommandProblem

SWITCHES: Final = frozenset(
    """
    rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
    enable_per_model_batching_parameters flush_filesystem_caches use_alts_credentials
    enable_model_warmup version remove_unused_fields_from_bundle_metagraph prefer_tflite_model
    enable_signature_method_name_check xla_cpu_compilation_enabled xla_gpu_compilation_enabled
    enable_profiler skip_initialize_tpu enable_grpc_healthcheck_service
    enable_serialization_as_tensor_content help
    """.split()  # noqa: SIM905
)
VALUED: Final = frozenset(
    """
    port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
    batching_parameters_file model_config_file model_config_file_poll_wait_seconds model_name
    model_base_path num_load_threads num_unload_threads max_num_load_retries
    load_retry_interval_micros file_system_poll_wait_seconds tensorflow_session_parallelism
    tensorflow_session_config_file tensorflow_intra_op_parallelism
    tensorflow_inter_op_parallelism ssl_config_file platform_config_file
    per_process_gpu_memory_fraction saved_model_tags grpc_channel_arguments grpc_max_threads
    num_request_iterations_for_warmup monitoring_config_file num_tflite_pools
    num_tflite_interpreters_per_pool thread_pool_factory_config_file mixed_precision
    """.split()  # noqa: SIM905
)
PROGRAM: Final = "tensorflow_model_server"


def unknown(command: Sequence[str], owned: frozenset[str]) -> tuple[CommandProblem, ...]:
    """A warning for every argument that the server will ignore. ``owned``: flags of ours, with dashes;
    they are refused elsewhere.
    """
    start = next((at for at, word in enumerate(command) if PROGRAM in word), len(command))
    out: list[CommandProblem] = []
    words = list(command[start + 1 :])
    while words:
        word = words.pop(0)
        name, given, _ = word.removeprefix("--").partition("=")
        value = [words.pop(0)] if not given and words and not words[0].startswith("-") else []
        if (
            not word.startswith("-")
            or name in SWITCHES
            or name.lstrip("-").replace("_", "-") in owned
        ):
            ignored = value if name in SWITCHES and word.startswith("-") else []
            ignored = [word, *value] if not word.startswith("-") else ignored
            out += [
                _warning(f"{one!r} is no flag: {PROGRAM} ignores it", "take it out")
                for one in ignored
            ]
        elif name in VALUED and word.startswith("--"):
            if not given:
                wrong = f"{word} has no value: {PROGRAM} reads it after '=' only, and ignores it so"
                out.append(_warning(wrong, f"write {word}={value[0] if value else 'VALUE'}"))
        else:
            out.append(
                _warning(
                    f"{PROGRAM} knows no {word.split('=', 1)[0]}: it ignores it", nearest(name)
                )
            )
    return tuple(out)


def nearest(name: str) -> str:
    """The known flag that was probably meant."""
    known = sorted(SWITCHES | VALUED)
    close = difflib.get_close_matches(name.strip("-").replace("-", "_"), known, n=1, cutoff=0.6)
    return f"did you mean '--{close[0]}'?" if close else "take it out"


def _warning(wrong: str, right: str) -> CommandProblem:
    return CommandProblem(wrong, right, severity="warning")
