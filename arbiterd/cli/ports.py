"""Whether the engine ports are closed to local users: by the daemon's word, else by what the host has."""

from __future__ import annotations

import os
import subprocess

from arbiterd.act.port_keeper import refusal
from arbiterd.cli.client import Client
from arbiterd.cli.show import as_row
from arbiterd.daemon.engine_ports import no_rule
from arbiterd.errors import ArbiterError
from arbiterd.model.published import PortGuard
from arbiterd.model.settings import Settings

NFT = "/usr/sbin/nft"
UNIT = "gpu-arbiter-ports.service"
FOLDERS = tuple(f"{one}/systemd/system" for one in ("/usr/local/lib", "/etc", "/usr/lib", "/lib"))
_NFT_S = 10.0


def guard(settings: Settings, client: Client) -> PortGuard:
    """Without a daemon ``closed`` means that one could close them."""
    why = refusal(settings) or no_rule(settings)
    if not why:
        try:
            row = as_row(as_row(client.get("/v1/status")).get("engine_ports"))
            if row:
                return PortGuard(
                    closed=bool(row.get("closed")), problem=str(row.get("problem") or "")
                )
        except ArbiterError:
            pass
        why = _unable()
    return PortGuard(closed=not why, problem=why)


def mend(settings: Settings) -> str:
    """The next command, "" where none helps."""
    if refusal(settings) or no_rule(settings):
        return ""
    if not os.path.exists(NFT):
        return "apt-get install nftables"
    return f"systemctl status {UNIT}" if _installed() else "make install"


def _installed() -> bool:
    return any(os.path.exists(f"{folder}/{UNIT}") for folder in FOLDERS)


def _unable() -> str:
    """Why this host cannot load the rule. Only root may ask the kernel."""
    if not os.path.exists(NFT):
        return f"{NFT} is not there"
    if not _installed():
        return f"{UNIT} is not installed"
    if os.geteuid() != 0:
        return ""
    try:
        done = subprocess.run(
            [NFT, "list", "tables"], capture_output=True, text=True, timeout=_NFT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{NFT} cannot be run: {error}"
    return (
        "" if done.returncode == 0 else f"the kernel has no nftables: {done.stderr.strip()[:200]}"
    )
