"""What `check` says of engines' keys: those that nobody here knows, and those that differ."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from arbiterd.errors import Flaw
from arbiterd.gateway.layout import owners
from arbiterd.model.settings import Settings
from arbiterd.secrets.keyring import Keyring
from arbiterd.store.state_files import keyed

Warn = Callable[[str, str, Flaw], None]  # (backend, key of the file, what)


def check_keys(settings: Settings, warn: Warn) -> None:
    """``warn`` is told at the line of a key; no key itself is ever told."""
    ring = Keyring(keyed(Path(settings.arbiter.state_dir)).look()[0])
    backends = settings.active.backends
    keys = {name: ring.engine(one) for name, one in backends.items()}
    guarded, asked = ring.refusing & backends.keys(), bool(settings.gateway.key_file)
    for name in sorted(guarded):
        if not keys[name]:
            clients = (
                "every client of its door gets 401" if asked else "no substitute answers for it"
            )
            wrong = f"it has answered 401, and its key is not known here: {clients}"
            right = "write its key into env_file, for vLLM as VLLM_API_KEY"
            warn(name, "env_file", Flaw(wrong, right))
    if asked:
        return  # the doors send each engine its own
    for one, other, why in _together(settings):
        if one in keys and other in keys and keys[one] != keys[other]:
            wrong = f"{one} and {other} take different keys, and {why}: a client's key opens one of them"
            right = "give both the same key, or write [gateway] key_file"
            warn(other, "env_file", Flaw(wrong, right))


def _together(settings: Settings) -> list[tuple[str, str, str]]:
    """Pairs of backends of which one request may come to either."""
    pairs = {
        pair: f"both serve {model}"
        for model, names in owners(settings).items()
        for pair in combinations(names, 2)
    }
    for rule in settings.failover:
        pairs.setdefault(
            (rule.from_backend, rule.to_backend), f"one stands in for the other with {rule.model}"
        )
    return [(one, other, why) for (one, other), why in pairs.items()]
