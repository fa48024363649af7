"""The keeper of the engine ports' rule: when it loads it, what it tells, what it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from arbiterd.act import port_keeper
from arbiterd.act.port_keeper import PortKeeper
from arbiterd.act.port_unit import Applied
from arbiterd.daemon.engine_ports import granted
from arbiterd.errors import LaunchError
from arbiterd.model.events import EventName, Severity
from arbiterd.model.settings import Settings
from tests.support import wait_until
from tests.world.scenario import settings_of

CONFIG = 'mode = "A"\n[backends.vllm]\ncommand = ["vllm", "serve", "M"]\nsleep = true\n{more}\n[modes.A]\nvllm = {{ gpu = 0 }}\n'


def _settings(more: str = "", tail: str = "") -> Settings:
    return settings_of(CONFIG.format(more=more) + tail)


class _Unit:
    """Notes what is loaded; answers what the test says."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.answers: list[Applied] = []
        self.loaded: list[str] = []
        self.removed = 0
        self.missing = False

    def users(self) -> frozenset[int]:
        if self.missing:
            msg = "there is no user 'haproxy'"
            raise LaunchError(msg)
        return frozenset({103})

    def apply(self) -> Applied:
        self.loaded.append(self.file.read_text())
        return self.answers.pop(0) if self.answers else Applied()

    def remove(self) -> None:
        self.removed += 1

    def close(self) -> None:
        pass


class _Bench:
    def __init__(self, file: Path) -> None:
        self.unit = _Unit(file)
        self.keeper = PortKeeper(file, self.unit, "", lambda: None, every_s=0.05)
        self.told: list[tuple[Severity, str]] = []

    def hear(self, words: str) -> bool:
        for event in self.keeper.said():
            assert event.name is EventName.PORTS_OPEN
            self.told.append((event.severity, event.message))
        return any(words in text for _, text in self.told)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Bench]:
    """A keeper with a unit that is none, looking twenty times a second."""
    file = tmp_path / "ports.nft"
    monkeypatch.setattr(port_keeper, "FILE", str(file))
    one = _Bench(file)
    yield one
    one.keeper.close()


def test_the_rule_is_in_force_before_anything_starts_and_loaded_again(bench: _Bench) -> None:
    """By the time ``first`` returns; then as often as it is looked at; the file is root's alone."""
    guard = bench.keeper.first(_settings())
    assert (guard.closed, guard.ports, guard.problem) == (True, (18000,), "")
    assert bench.unit.file.stat().st_mode & 0o777 == 0o600
    assert "{ 0, 103 }" in bench.unit.loaded[0]
    wait_until(lambda: len(bench.unit.loaded) >= 3, 20, "two more looks")
    assert not bench.keeper.said(), "nothing to tell while it stays"


def test_a_rule_that_was_gone_is_told_and_one_that_cannot_be_set_too(bench: _Bench) -> None:
    """Once each, and that it is back."""
    bench.keeper.first(_settings())
    bench.unit.answers = [Applied(gone=True)]
    wait_until(lambda: bench.hear("was gone, and is back"), 20, "the flush is told")
    bench.unit.answers = [Applied("nft cannot be run")] * 3
    wait_until(
        lambda: bench.hear("any local user can open the engine ports 18000: nft cannot"), 20, "open"
    )
    wait_until(lambda: bench.hear("closed to local users again"), 20, "closed")
    assert sum("any local user" in text for _, text in bench.told) == 1
    wait_until(lambda: bench.keeper.latest().closed, 20, "closed")


def test_without_the_doors_users_there_is_no_rule(bench: _Bench) -> None:
    """A rule without HAProxy's uid would shut the doors."""
    bench.unit.missing = True
    guard = bench.keeper.first(_settings())
    assert (guard.closed, guard.problem) == (False, "there is no user 'haproxy'")
    assert not bench.unit.loaded


def test_the_ports_follow_the_file_and_those_of_before_stay_while_it_switches(
    bench: _Bench,
) -> None:
    """The engine of before listens until it has ended."""
    old, new = _settings(), _settings("engine_port = 7000")
    bench.keeper.first(old)
    bench.keeper.order(new, switching=True)
    wait_until(lambda: bench.keeper.latest().ports == (7000, 18000), 20, "both")
    bench.keeper.order(new, switching=False)
    wait_until(lambda: bench.keeper.latest().ports == (7000,), 20, "the new one")


def test_a_file_that_wants_no_rule_takes_it_away(bench: _Bench) -> None:
    """Trusted users, or engines that have the public ports; a stop of the daemon removes it as well."""
    bench.keeper.first(_settings())
    bench.keeper.order(_settings(tail='[arbiter]\nlocal_users = "trusted"\n'), switching=False)
    wait_until(lambda: bench.unit.removed, 20, "removed")
    wait_until(lambda: not bench.keeper.latest().closed, 20, "told")
    bench.keeper.stop()
    assert bench.unit.removed >= 2


def test_without_a_unit_nothing_is_done_and_the_reason_is_there(tmp_path: Path) -> None:
    """The direct launcher: no thread, no file."""
    keeper = PortKeeper(
        tmp_path / "ports.nft", None, "launcher direct sets no nftables rule", lambda: None
    )
    guard = keeper.first(_settings())
    keeper.stop()
    assert (guard.closed, guard.problem) == (False, "launcher direct sets no nftables rule")
    assert not (tmp_path / "ports.nft").exists()


def test_sleep_is_only_granted_where_local_users_do_not_reach_the_engine() -> None:
    """The backend starts all the same; every mode loses it; a host that trusts its users keeps it."""
    asked = _settings(tail='[modes.B]\nvllm = { gpu = 0, memory = "30%" }\n')
    assert granted(asked, closed=True) is asked
    made = granted(asked, closed=False)
    assert not any(one.backends["vllm"].vllm.sleep for one in made.modes.values())
    assert made.source == asked.source
    trusting = _settings(tail='[arbiter]\nlocal_users = "trusted"\n')
    assert granted(trusting, closed=False) is trusting
