"""The live map: everything about the doors that changes while they are open.

One file, ``key value`` a line. It is written before the Runtime API is told, so that a HAProxy that
restarts or reloads for any reason finds the newest state (docs/facts/gateway.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from arbiterd.gateway.layout import Layout, models, owners, spelled
from arbiterd.model.gateway import GatewayWish
from arbiterd.model.settings import Kind, Settings

_PLAIN = re.compile(r"[^ -~]|[\\\"'%]")
WHY_MAX = 300


def clean(text: str) -> str:
    """Text for a header, a JSON string and the Runtime API's command line alike."""
    return _PLAIN.sub(" ", text.replace("→", "->").replace("'", "`"))[:WHY_MAX].strip() or "-"


def live(
    wish: GatewayWish, layout: Layout, settings: Settings, hide: Callable[[str], str] = str
) -> dict[str, str]:
    """Key → value. Keys that are missing mean the safe thing: shed, no failover, no model. ``hide``
    takes secrets out of reasons, before they are cut: clients read them.
    """
    out: dict[str, str] = {}
    for one in layout.backends:
        state = wish.backends.get(one.name)
        if state is None:
            continue
        name = one.name
        out[f"st:{name}"] = state.admit.value
        out[f"ok:{name}"] = "1" if state.accepting else "0"
        out[f"ra:{name}"] = str(state.retry_after_s)
        out[f"rf:{name}"] = str(state.full_retry_after_s)
        out[f"q:{name}"] = str(state.max_queue)
        out[f"why:{name}"] = clean(hide(state.why))
        if state.advice:
            out[f"adv:{name}"] = clean(hide(state.advice))
        out[f"ver:{name}"] = clean(state.version or "unknown")
        out[f"dev:{name}"] = str(state.device_bytes)
    for (source, model), target in wish.failover.items():
        out[f"fo:{source}:{model}"] = target
        # A vLLM serves one model: a body whose model is beyond the buffer can only mean that one.
        if layout.behind(source).kind is Kind.VLLM:
            out.setdefault(f"fo:{source}:*", target)
        out.setdefault(f"fl:{source}", target)  # its list of models is the gate's while it is out
    ollamas = [one.name for one in layout.backends if one.kind is Kind.OLLAMA]
    for model, backend in spelled(models(settings), ollamas).items():
        out[f"m:{model}"] = backend
    for model, names in owners(settings).items():
        if len(names) > 1:
            for word in spelled({model: names[0]}, ollamas):
                out[f"mn:{word}"] = f",{','.join(names)},"
    for model, backend in wish.adapters.items():
        out.setdefault(f"m:{model}", backend)
    return {key: value for key, value in out.items() if " " not in key and value}


def text(entries: Mapping[str, str]) -> str:
    """The file."""
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def parse(content: str) -> dict[str, str]:
    """What a file, or ``show map`` (each line led by an address), says."""
    out: dict[str, str] = {}
    for line in content.splitlines():
        words = line.split(" ", 2) if line.startswith("0x") else ["", *line.split(" ", 1)]
        if len(words) == 3:
            out[words[1]] = words[2]
    return out
