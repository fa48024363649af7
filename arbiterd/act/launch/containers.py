"""What a launcher does about containers: the rest of the run line, leftovers, stop, kill, removal.

Docker's processes live under docker's daemon: they are stopped and killed through its client, and by
their cgroup when that does not answer. Podman's under systemd live in the backend's own unit.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from arbiterd.act.launch.base import BASE_PATH, secrets_of, signal_exactly
from arbiterd.errors import LaunchError
from arbiterd.files.trust import environ, tool
from arbiterd.linux import container_ids, procfs
from arbiterd.linux.cgroups import cpu_s_of, pids_of
from arbiterd.linux.container_ids import Container
from arbiterd.model.container import LABEL, Client, ContainerSpec, clients_own
from arbiterd.model.launch import Exit, LaunchSpec, UnitObservation, UnitState

SLICE = "gpu-arbiter.slice"
_ASK_S = 15.0
_MADE_S = 3.0
_REMOVED_S = 10.0
_POLL_S = 0.05
_FIRST_SIGNAL = 129  # a client ends with 128 + the signal that ended the container's main process


def completed(spec: LaunchSpec, *, systemd: bool, secrets: Sequence[str]) -> LaunchSpec:
    """The run line with what depends on the launcher.

    Under systemd podman's processes stay in the unit's own cgroup, docker's come into our slice.
    ``secrets``: names of env_file's variables; their values are in the client's environment.

    Raises:
        LaunchError: env_file sets a variable that the client would take for itself.

    """
    if spec.container is None:
        return spec
    client = spec.container.client
    options: list[str] = []
    if systemd:
        options = ["--cgroups=split" if client == "podman" else f"--cgroup-parent={SLICE}"]
    for name in sorted(secrets):
        if clients_own(name):
            msg = (
                f"cannot start {spec.backend}: env_file sets {name}, which {client} itself would "
                "read; set it in env"
            )
            raise LaunchError(msg)
        if f"--env={name}" not in spec.argv:
            options.append(f"--env={name}")
    return replace(spec, argv=(*spec.argv[:2], *options, *spec.argv[2:]))


def with_secrets(spec: LaunchSpec, *, systemd: bool) -> LaunchSpec:
    """``completed`` with the names that env_file holds now."""
    names = tuple(secrets_of(spec)) if spec.container else ()
    return completed(spec, systemd=systemd, secrets=names)


def exit_of(found: Exit | None) -> Exit | None:
    """The container's end as told by its client's exit code: 137 is signal 9."""
    if found is not None and found.code is not None and found.code >= _FIRST_SIGNAL:
        number = found.code - 128
        if number < signal.NSIG:
            return Exit(signal=number)
    return found


def removal(container: ContainerSpec) -> list[str]:
    """Podman's line that removes whatever carries our label, running or not."""
    return ["podman", "rm", "--force", "--time=0", f"--filter=label={container.label}"]


class Containers:
    """The containers of one runtime folder. Thread-safe: it keeps nothing but cgroup paths.

    ``podman`` False: podman is never called from here (the daemon's sandbox would break it), the
    backend's unit does it.
    """

    def __init__(self, folder: Path, *, podman: bool) -> None:
        self._folder = folder
        self._podman = podman
        self._paths: dict[str, str] = {}

    # -- looking -------------------------------------------------------------------------------
    def known(self) -> dict[str, Container]:
        """By backend, those with an id file; some may be gone."""
        return container_ids.recorded(self._folder)

    def cgroup(self, backend: str) -> str:
        """The cgroup path of its container, "" when it has none. Never blocks."""
        one = self.known().get(backend)
        return self._cgroup(one) if one else ""

    def _cgroup(self, one: Container) -> str:
        path = self._paths.get(one.id, "")
        if path and pids_of(path):
            return path
        path = container_ids.cgroup_of(one)
        if path:
            self._paths[one.id] = path
        else:
            self._paths.pop(one.id, None)
        return path

    def pids(self, backend: str) -> tuple[int, ...]:
        """Living processes of its container, host pids."""
        return pids_of(self.cgroup(backend))

    def cpu_s(self, backend: str) -> float:
        """CPU seconds of its container, 0 when not readable."""
        return cpu_s_of(self.cgroup(backend))

    def unattended(self, attended: Collection[str], now: float) -> dict[str, UnitObservation]:
        """Containers that outlived client and record: leftovers, to be stopped."""
        return {
            name: UnitObservation(name, UnitState.EXITED, since=now, pids=pids, exit=Exit())
            for name in self.known()
            if name not in attended and (pids := self.pids(name))
        }

    def owner_of(self, pid: int) -> str:
        """The backend in whose container this process lives, "" for none."""
        return container_ids.owner_of(pid, self.known().values())

    # -- doing ---------------------------------------------------------------------------------
    def prepare(self, spec: LaunchSpec) -> None:
        """Make room for a start: no id file, no leftover with our label.

        Raises:
            LaunchError: the client is not there, does not answer, or keeps a leftover.

        """
        if spec.container is None:
            return
        self.forget(spec.backend)
        if self._podman or spec.container.client == "docker":
            self._remove(spec.container.client, spec.container.label, spec.backend)

    def stop(self, backend: str, grace_s: float) -> None:
        """Of a container whose client is gone: TERM, and KILL after the grace, by docker or podman."""
        one = self.known().get(backend)
        if one and self.pids(backend):
            self._run(one.client, "stop", "-t", str(round(grace_s)), one.id, more_s=grace_s)

    def kill(self, backend: str) -> None:
        """KILL to its container by docker or podman; what is left is killed by identity."""
        one = self.known().get(backend)
        if one is None or not self.pids(backend):
            return
        self._run(one.client, "kill", one.id)
        for pid in self.pids(backend):
            if (ref := procfs.ref(pid)) is not None:
                signal_exactly(ref, signal.SIGKILL)

    def remove(self, backend: str, client: str, *, attended: bool) -> None:
        """Remove what is left of it, and its id file. ``client``: "" for a plain command; ``attended``:
        it ran until we stopped it, so without an id file its container may still be in the
        making. One that does not answer now is asked again before the next start.
        """
        one = self.known().get(backend)
        found = one.client if one else client
        if found and (self._podman or found == "docker"):
            with suppress(LaunchError):
                label = f"{LABEL}={self._folder / backend}"
                which: Client = "podman" if found == "podman" else "docker"
                self._remove(which, label, backend, making=attended and one is None)
        self.forget(backend)

    def forget(self, backend: str) -> None:
        """Drop its id files."""
        for path in self._folder.glob(f"{backend}.*.cid"):
            path.unlink(missing_ok=True)

    def _remove(self, client: Client, label: str, backend: str, *, making: bool = False) -> None:
        """Remove what carries the label, until nothing does: one that --rm is removing already refuses,
        and one whose client was ended while docker made it (``making``) shows up a moment later.
        """
        began = time.monotonic()
        await_until = began + _MADE_S if making else began
        while True:
            ids = self._listed(client, label, backend)
            now = time.monotonic()
            if not ids and now >= await_until:
                return
            if ids:
                await_until = now
                gone = self._run(client, "rm", "--force", *ids)
                if gone.returncode != 0 and now - began >= _REMOVED_S:
                    said = (gone.stderr.strip().splitlines() or ["it says nothing"])[-1]
                    msg = f"cannot start {backend}: {client} cannot remove {ids[0][:12]}: {said}"
                    raise LaunchError(msg)
            time.sleep(_POLL_S)

    def _listed(self, client: Client, label: str, backend: str) -> list[str]:
        listed = self._run(
            client, "ps", "--all", "--quiet", "--no-trunc", f"--filter=label={label}"
        )
        if listed.returncode != 0:
            said = (listed.stderr.strip().splitlines() or ["it says nothing"])[-1]
            msg = f"cannot start {backend}: {client} does not answer: {said}"
            raise LaunchError(msg)
        return listed.stdout.split()

    def _run(
        self, client: Client, *words: str, more_s: float = 0.0
    ) -> subprocess.CompletedProcess[str]:
        if client == "podman" and not self._podman:
            return subprocess.CompletedProcess(words, 0, "", "")
        program = tool(client, BASE_PATH)
        if program is None:
            return subprocess.CompletedProcess(words, 127, "", f"{client} is not there")
        try:
            return subprocess.run(
                [program, *words],
                capture_output=True,
                text=True,
                timeout=_ASK_S + more_s,
                check=False,
                env=environ(),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return subprocess.CompletedProcess(words, 124, "", str(error))
