"""Keys at the doors: who may come in, whom a substitute may answer, which key an engine gets. Pure text."""

from __future__ import annotations

from collections.abc import Sequence

from arbiterd.gateway.keys import ALL, DOORS, ENGINES, KEYED, Keys, of_backend
from arbiterd.gateway.paths import Paths
from arbiterd.gateway.rules import refuse


def at_door(keys: Keys, names: Sequence[str], api: str, paths: Paths, free: str = "") -> list[str]:
    """Ask for the key, and tell the gate whose it is. ``names``: the backends behind this door.
    ``free``: a condition under which nobody is asked (health URLs).
    """
    lines: list[str] = []
    if keys.asked:
        return [
            f"acl with-key http_auth_bearer -m str -f {paths.files / DOORS}",
            f"acl with-key req.hdr(x-api-key) -m str -f {paths.files / DOORS}",
            *refuse(
                api, 401, "a key is needed: Authorization: Bearer KEY", f"!with-key {free}".strip(),
                'hdr WWW-Authenticate "Bearer" ',
            ),
            f"http-request set-header {KEYED} {ALL} if with-key",
        ]  # fmt: skip
    for name in names:
        if name in keys.known:
            file = paths.files / of_backend(name)
            lines += [
                f"acl key-of-{name} http_auth_bearer -m str -f {file}",
                f"http-request add-header {KEYED} {name} if key-of-{name}",
            ]
    return lines


def at_grpc_door(keys: Keys, paths: Paths) -> list[str]:
    """The same for gRPC: UNAUTHENTICATED."""
    if not keys.asked:
        return []
    denied = (
        "http-request return status 200 hdr grpc-status 16 "
        f'hdr grpc-message "a key is needed: authorization: Bearer KEY" file {paths.files / "empty"} '
        "unless with-key"
    )
    return [
        f"acl with-key http_auth_bearer -m str -f {paths.files / DOORS}",
        f"acl with-key req.hdr(x-api-key) -m str -f {paths.files / DOORS}",
        denied,
    ]


def towards(keys: Keys, name: str, paths: Paths) -> list[str]:
    """What an engine is sent: its own key, where the doors ask for theirs and it is known; no other."""
    if not keys.asked:
        return []
    out = ["http-request del-header x-api-key"]
    if name not in keys.known:
        return [*out, "http-request del-header authorization"]
    key = f"%[str({name}),map({paths.files / ENGINES})]"
    return [*out, f'http-request set-header authorization "Bearer {key}"']
