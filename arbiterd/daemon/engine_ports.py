"""The engines' own ports: who keeps local users away from them, and what is not done while nobody does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from arbiterd.act.port_keeper import PortKeeper
from arbiterd.act.port_unit import FILE, PortUnit
from arbiterd.linux.init_system import use_systemd
from arbiterd.model.events import Severity
from arbiterd.model.settings import Settings


def no_rule(settings: Settings) -> str:
    """Why this launcher sets no rule, whatever the file wants; "" when it does."""
    if settings.arbiter.dry_run:
        return "a dry run sets no rule"
    return "" if use_systemd(settings) else "launcher direct sets no nftables rule"


def sleepers(settings: Settings) -> tuple[str, ...]:
    """Backends that ask for sleep in any mode."""
    backends = [one for mode in settings.modes.values() for one in mode.backends.values()]
    return tuple(dict.fromkeys(one.name for one in backends if one.vllm.sleep))


def granted(settings: Settings, *, closed: bool) -> Settings:
    """These settings as they may be used. vLLM can only sleep in its dev mode, which opens /collective_rpc
    (calls of any method of its workers) to whoever reaches its port: none of it while local users do.
    """
    if closed or settings.arbiter.local_users == "trusted" or not sleepers(settings):
        return settings
    modes = {}
    for name, mode in settings.modes.items():
        backends = {
            n: replace(one, vllm=replace(one.vllm, sleep=False)) if one.vllm.sleep else one
            for n, one in mode.backends.items()
        }
        modes[name] = replace(mode, backends=backends)
    return replace(settings, modes=modes)


def sleepless(why: str) -> tuple[str, str]:
    """(what is wrong, what would be right) where ``granted`` takes sleep away."""
    return (
        f"is not used: vLLM's routes for it would be open to every local user ({why})",
        'run it under systemd with nftables; without other users here: [arbiter] local_users = "trusted"',
    )


class EnginePorts(PortKeeper):
    """The keeper that fits these settings. ``say`` tells operators a plain line."""

    def __init__(
        self,
        settings: Settings,
        on_change: Callable[[], None],
        say: Callable[[Severity, str], None],
    ) -> None:
        file = Path(settings.arbiter.runtime_dir) / Path(FILE).name
        why = no_rule(settings)
        super().__init__(file, None if why else PortUnit(), why, on_change)
        self._say = say

    def begin(self, settings: Settings) -> Settings:
        """Close the ports before anything starts; these settings as they may be used."""
        self.first(settings)
        return self.granted(settings)

    def granted(self, settings: Settings) -> Settings:
        """Without sleep while the rule is not in force; said."""
        guard = self.latest()
        made = granted(settings, closed=guard.closed)
        if made is not settings:
            wrong, right = sleepless(guard.problem)
            names = ", ".join(sleepers(settings))
            self._say(Severity.WARNING, f"{names}: sleep = true {wrong}; {right}")
        return made
