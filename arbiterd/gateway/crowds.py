"""What a door does against many connections: HAProxy's own means. Pure text.

A source may have SOURCE_MOST connections without a complete request: all of its connections, counted when
they are accepted, less its requests under way, counted from a complete header and what is buffered of the
body. This host and ``trusted_proxies`` are exempt: a router is one source with all streams. They have
connections at each door that nobody else can take, and no door can take those of another one.
"""

from __future__ import annotations

from typing import Final

from arbiterd.gateway.layout import Layout

SOURCE_MOST: Final = 128
OTHERS_MOST: Final = 1000  # connections at one door from sources that are not trusted
DOOR_MOST: Final = 4500  # at one door in all; an idle one costs some 8 KiB
INSIDE_MOST: Final = 2000  # the gate's and the daemon's own ways in, together
_SPARE_FILES: Final = 256  # listeners, checks, sockets of its own
HEADER_S: Final = 10  # for a header and what is buffered of its body (rules.BUFFER_BYTES)
STALL_S: Final = 60  # without a byte from, or taken by, a client whose turn it is
LINE_MOST: Final = 8190  # bytes of a header line, as in Apache, nginx, aiohttp
_OPEN, _ASKED = "sources-open", "sources-asked"
_SOURCE = "src,ipmask(32,64)"  # who has one IPv6 address mostly has a /64


def whole(layout: Layout) -> int:
    """HAProxy's limit for the process: what all doors can take, and the ways inside; each connection
    may need two file descriptors.
    """
    most = DOOR_MOST * max(1, len(layout.doors)) + INSIDE_MOST
    return max(32, min(most, (layout.files - _SPARE_FILES) // 2))


def door_most(layout: Layout) -> int:
    """Connections at one door. Where descriptors are few, one door leaves half to the others."""
    return min(DOOR_MOST, whole(layout) * 45 // 100)


def others_most(layout: Layout) -> int:
    """Those from sources that are not trusted."""
    return min(OTHERS_MOST, door_most(layout) // 2)


def tables() -> str:
    """Counters by source, over all doors."""
    return "".join(
        f"backend {name}\n    stick-table type ipv6 size 100k expire 10m store conn_cur\n"
        for name in (_OPEN, _ASKED)
    )


def at_accept(layout: Layout) -> list[str]:
    """Before a byte is read; refused ones are reset."""
    trusted = " ".join(layout.trusted)
    return [
        f"maxconn {door_most(layout)}",
        f"acl trusted-source src {trusted}",
        f"tcp-request connection track-sc0 {_SOURCE} table {_OPEN} if !trusted-source",
        f"tcp-request connection set-var(sess.asked) {_SOURCE},table_conn_cur({_ASKED})",
        (
            "tcp-request connection reject if !trusted-source "
            f"{{ sc0_conn_cur,sub(sess.asked) gt {SOURCE_MOST} }}"
        ),
        f"tcp-request connection reject if !trusted-source {{ fe_conn gt {others_most(layout)} }}",
        f"http-request track-sc1 {_SOURCE} table {_ASKED} if !trusted-source",
    ]
