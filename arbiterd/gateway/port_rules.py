"""The nftables rule that keeps local users away from the engines' own ports. Pure: text and sets.

Engines listen on loopback behind the doors, but any local account can open a loopback connection, past
keys, limits and allow-lists. IPAddressAllow= does not help: it lets local users through. So the rule asks
who sends: over lo, to an engine's port, anybody but root, HAProxy and the load gate is reset.
"""

from __future__ import annotations

from collections.abc import Collection

from arbiterd.model.settings import Settings

TABLE = "gpu_arbiter"

# Before a container client's own rewriting (nat output, -100): the port is still the published one.
_RULE = """\
table inet {table} {{
    comment "gpu-arbiter: engine ports are for its doors; docs/security.md"
    set engine_ports {{
        type inet_service
        elements = {{ {ports} }}
    }}
    chain output {{
        type filter hook output priority -150; policy accept;
        oifname "lo" tcp dport @engine_ports meta skuid != {{ {users} }} counter reject with tcp reset
    }}
}}
"""


def text(ports: Collection[int], users: Collection[int]) -> str:
    """A file for ``nft -f``: one transaction, so that there is no moment without the rule. ``add`` first,
    since ``delete`` of a table that is not there would fail it all.
    """
    rule = _RULE.format(
        table=TABLE,
        ports=", ".join(str(int(port)) for port in sorted(ports)),
        users=", ".join(str(int(user)) for user in sorted({0, *users})),
    )
    return f"add table inet {TABLE}\ndelete table inet {TABLE}\n{rule}"


def engine_ports(settings: Settings) -> frozenset[int]:
    """Every engine port of every mode, so that a switch opens none before the rule knows it; none without
    doors, where engines have the public ports.
    """
    if not settings.gateway.enabled:
        return frozenset()
    return frozenset(
        port
        for mode in settings.modes.values()
        for one in mode.backends.values()
        for port in (one.engine_port, one.engine_grpc_port)
        if port
    )
