"""Keys and certificate of the doors change with their files, without a reload by hand."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from arbiterd.act.gateway.door_keys import LOOK_EVERY_S, DoorKeys
from arbiterd.gateway import render
from arbiterd.gateway.keys import CERTIFICATE, DOORS, Keys
from arbiterd.gateway.layout import layout
from arbiterd.gateway.paths import Paths, paths
from arbiterd.model.settings import Settings
from arbiterd.secrets.keyring import Keyring
from tests.core.world import settings


def _settings(**gateway: str) -> Settings:
    base = settings()
    return replace(base, gateway=replace(base.gateway, **gateway))  # type: ignore[arg-type]


def _made(tmp_path: Path) -> tuple[Paths, DoorKeys]:
    where = paths(str(tmp_path / "run"), systemd=False)
    where.files.mkdir(parents=True)
    return where, DoorKeys(where, Keyring(), shared=False)


def _pem(path: Path) -> str:
    """A new certificate with its key, at this path."""
    key, crt = path.with_suffix(".key"), path.with_suffix(".crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", crt],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(crt.read_text() + key.read_text())
    return path.read_text()


def _text(given: Settings, found: Keys, where: Paths) -> str:
    """HAProxy's configuration: another text is what makes it reload."""
    return render.render(layout(given, {}, (), found), where, systemd=False)


def test_a_new_key_is_in_force_at_the_next_look(tmp_path: Path) -> None:
    """The file is read again, what HAProxy reads is written, and its configuration is another one."""
    file = tmp_path / "keys"
    file.write_text("sk-old\n")
    given = _settings(key_file=str(file))
    where, one = _made(tmp_path)
    before = one.of(given, 0.0)
    one.write()
    assert (where.files / DOORS).read_text() == "sk-old\n"
    file.write_text("sk-old\nsk-new-key\n")
    assert one.of(given, LOOK_EVERY_S / 2) == before
    after = one.of(given, LOOK_EVERY_S)
    one.write()
    assert (where.files / DOORS).read_text() == "sk-old\nsk-new-key\n"
    assert _text(given, before, where) != _text(given, after, where)


def test_a_key_file_that_is_gone_shuts_the_doors(tmp_path: Path) -> None:
    """Keys are still asked for, nobody has one, and the problem names the file."""
    file = tmp_path / "keys"
    file.write_text("sk-old\n")
    given = _settings(key_file=str(file))
    where, one = _made(tmp_path)
    one.of(given, 0.0)
    file.unlink()
    assert one.of(given, LOOK_EVERY_S).asked
    one.write()
    assert (where.files / DOORS).read_text() == ""
    assert str(file) in one.problem


def test_a_renewed_certificate_is_in_force_at_the_next_look(tmp_path: Path) -> None:
    """One that cannot be used keeps the one in force, with the reason; a good one ends the problem."""
    file = tmp_path / "door.pem"
    first = _pem(file)
    given = _settings(certificate=str(file))
    where, one = _made(tmp_path)
    before = one.of(given, 0.0)
    one.write()
    file.write_text("half a file")
    assert one.of(given, LOOK_EVERY_S) == before
    assert str(file) in one.problem
    second = _pem(file)
    after = one.of(given, 2 * LOOK_EVERY_S)
    one.write()
    assert one.problem == ""
    assert second != first
    assert (where.files / CERTIFICATE).read_text() == second
    assert _text(given, before, where) != _text(given, after, where)


def test_origins_of_an_env_file_count_as_those_of_env(tmp_path: Path) -> None:
    """A unit that was carried over keeps its OLLAMA_ORIGINS in its EnvironmentFile."""
    file = tmp_path / "ollama.env"
    file.write_text('OLLAMA_ORIGINS="https://a.example,https://b.example"\nOLLAMA_MODELS=/m\n')
    given = settings()
    mode = given.active
    backends = {**mode.backends, "ollama": replace(mode.backends["ollama"], env_file=str(file))}
    given = replace(given, modes={"A": replace(mode, backends=backends)})
    where = paths(str(tmp_path), systemd=False)
    found = DoorKeys(where, Keyring(), shared=False).of(given, 0.0)
    assert found.origins == ("https://a.example", "https://b.example")
    assert {"https://a.example", "https://b.example"} <= set(
        layout(given, keys=found).names.origins
    )
    assert layout(given).names.origins == ()
