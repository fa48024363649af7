"""Which configuration a starting daemon uses, and which launcher.

A bad file means exit 78 and nothing launched - unless engines of ours are alive: exit would leave
them unguarded, and `systemctl stop` of a dead daemon stops nothing. Then the last good file
(runtime_dir/last-good.toml) guards them (contract, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from arbiterd.act.gateway.reconciler import GatewayKeeper
from arbiterd.act.gateway.services import DirectServices, Services, SystemdServices
from arbiterd.act.launch.base import Launcher
from arbiterd.act.launch.direct import DirectLauncher
from arbiterd.act.launch.systemd import SystemdLauncher
from arbiterd.config import Loaded, load
from arbiterd.config_file import runtime_dir_of
from arbiterd.core.mode.config_state import problem_of_rollback
from arbiterd.daemon.loop import GatewayParts
from arbiterd.errors import ConfigRefused, Problem
from arbiterd.files import strict_json
from arbiterd.files.owned import claim, read_owned
from arbiterd.files.placing import make_folder
from arbiterd.gateway.paths import GROUP, paths
from arbiterd.linux import container_ids, procfs
from arbiterd.linux.init_system import use_systemd
from arbiterd.model.devices import ProcessRef
from arbiterd.model.settings import ArbiterSettings, Settings
from arbiterd.secrets.keyring import Keyring
from arbiterd.secrets.redact import Redactor
from arbiterd.sense.gateway_log import GatewayLog
from arbiterd.settings.history import ConfigFiles
from arbiterd.web.load_requests import LoadDesk


@dataclass(frozen=True, slots=True)
class Start:
    """What to run on. ``refused``: problems of the file we could not take (guarding
    only); ``rolled_back``: why, when it is its layout that did not come up.
    """

    loaded: Loaded
    refused: tuple[Problem, ...] = ()
    rolled_back: str = ""


def choose(path: Path, environ: Mapping[str, str]) -> Start:
    """Load the file; fall back to the last good one while engines of ours are alive.

    Raises:
        ConfigRefused: the file is bad and nothing is there to guard.

    """
    try:
        loaded = load(path, environ)
    except ConfigRefused as refused:
        runtime = runtime_dir_of(path, environ)
        good = ConfigFiles(runtime).last_good(path, environ) if engines_alive(runtime) else None
        if good is None:
            raise
        return Start(good, refused.problems)
    files = ConfigFiles(Path(loaded.settings.arbiter.runtime_dir))
    good, reason = files.instead(path, environ)
    if good is not None:
        return Start(good, (problem_of_rollback(str(path), reason),), reason)
    return Start(loaded)


def distrusted(arbiter: ArbiterSettings, files: ConfigFiles) -> list[str]:
    """Make state_dir and close it for others; what was wrong with it, and which files of the
    configuration are not believed. A disk that cannot be written costs what would be kept there,
    not the start.

    Raises:
        FolderRefused: another user owns state_dir.

    """
    try:
        said = claim(Path(arbiter.state_dir))
    except OSError as error:
        why = error.strerror or error
        said = f"cannot make {arbiter.state_dir}: {why}; incidents and caps are not kept"
    return [said, *files.distrusted()]


def engines_alive(runtime_dir: Path) -> bool:
    """Whether any backend recorded in this folder still runs (both launchers keep such records)."""
    if container_ids.any_alive(runtime_dir / "backends"):
        return True
    for path in sorted((runtime_dir / "backends").glob("*.json")):
        try:
            record = strict_json.loads(read_owned(path))
            main = ProcessRef(int(record["pid"]), int(record["start_time"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if procfs.alive(main):
            return True
        unit = f"gpu-arbiter-backend-{path.stem}.service"
        if any(procfs.unit_of(pid) == unit for pid in procfs.pids()):
            return True
    return False


def make_launcher(settings: Settings, on_change: Callable[[], None]) -> Launcher:
    """The launcher the settings ask for."""
    runtime = Path(settings.arbiter.runtime_dir)
    if use_systemd(settings):
        return SystemdLauncher(runtime, on_change)
    return DirectLauncher(runtime, on_change)


def make_gateway(
    settings: Settings, on_change: Callable[[], None], keys: Keyring, redactor: Redactor
) -> GatewayParts | None:
    """The doors, None when the file switches them off."""
    if not settings.gateway.enabled:
        return None
    systemd = use_systemd(settings)
    where = paths(settings.arbiter.runtime_dir, systemd=systemd)
    services: Services = SystemdServices() if systemd else DirectServices(where)
    keeper = GatewayKeeper(
        where, services, on_change, systemd=systemd, keys=keys, redactor=redactor
    )
    make_folder(where.files, 0o750, GROUP if systemd else "")
    log = GatewayLog(where.log, GROUP if systemd else "")
    return GatewayParts(keeper, log, LoadDesk(on_change), where)


DIRECT_NOTES = (
    "launcher direct: every local user can open the engines' own ports, and sleep is off (local_users)",
    "launcher direct: for development; SIGTERM stops every engine, only SIGKILL leaves them",
    "launcher direct: engines run as the daemon's own user unless it is root and `user` is set",
    "launcher direct: memory is attributed by process tree and tag, not by cgroup",
    "launcher direct: TensorFlow Serving's gRPC port is open to the network (it cannot bind loopback)",
)
