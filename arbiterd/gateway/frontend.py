"""What every frontend begins with, and its text. Pure."""

from __future__ import annotations

from arbiterd.gateway import crowds, guards, keys, rules
from arbiterd.gateway.layout import Door, Layout
from arbiterd.gateway.paths import Paths


def opening(
    layout: Layout,
    name: str,
    bind: str,
    api: str,
    paths: Paths,
    *,
    llm: bool,
    lists: bool = False,
    named: bool = False,
    grpc: bool = False,
) -> list[str]:
    """The beginning of every frontend. ``llm``: bodies are read, and our own headers mean something.
    ``lists``: the gate answers its lists of models. ``named``: it judges Host and Origin, which
    Ollama cannot any more.
    """
    public = not name.startswith("in-")
    lines = [
        "http-request lua.settle unless { var(proc.settled) -m found }",
        "http-request set-var(txn.t0) date(0,ms)",
        *rules.shape(api),
    ]
    if public:
        lines.append(
            "http-after-response set-header X-Arbiter-Served-By gpu-arbiter unless { res.hdr(x-arbiter-served-by) -m found }"
        )
        lines += guards.straight_paths(api, lists=lists)
        if not grpc:
            lines += guards.short_lines(api)
    if named:
        lines += guards.host_rules(layout.names, api)
        lines += guards.origin_rules(layout.names, api)
    if public and layout.trust_priority:
        lines.append("http-request set-var(txn.high) int(1) if { req.hdr(x-priority) -m str high }")
    if public and llm:
        lines.append("http-request del-header x-arbiter- -m beg")
        if layout.trust_priority:
            lines.append(
                "http-request set-header x-arbiter-priority high if { var(txn.high) -m found }"
            )
    if layout.trust_priority:
        lines.append("http-request set-priority-class int(-10) if { var(txn.high) -m found }")
        if not public:
            lines.append(
                "http-request set-priority-class int(-10) if { req.hdr(x-arbiter-priority) -m str high }"
            )
    # engines say 503 or 429 without it (docs/facts/engines.md), and clients obey it
    again = (
        f"http-response set-header Retry-After {rules.retry_full(paths)} if {{ status 429 503 }}"
    )
    lines.append(f"{again} !{{ res.hdr(retry-after) -m found }}")
    # a slow body must not hold a slot of the engine; gRPC's streams have no end to wait for
    option = "    # bodies are passed on at once" if grpc else "    option http-buffer-request"
    head = [f"frontend {name}", f"    bind {bind}", option, rules.errors(api, paths)]
    if public:
        lines = [*crowds.at_accept(layout), *lines]
    return [*head, *(f"    {line}" for line in lines)]


def bind(layout: Layout, door: Door, paths: Paths) -> str:
    """Address and port of a public door, with TLS where there is a certificate."""
    host = f"[{layout.bind}]" if ":" in layout.bind else layout.bind
    address = f"{host}:{door.port}"
    if layout.keys.certificate:
        spoken = "h2" if door.grpc else "h2,http/1.1"
        return f"{address} ssl crt {paths.files / keys.CERTIFICATE} alpn {spoken}"
    return address + (" proto h2" if door.grpc else "")


def text(head: list[str], lines: list[str], default: str) -> str:
    """The whole frontend; HAProxy wants its acls before the rules, and those before use_backend."""
    acls = [line for line in lines if line.startswith("acl ")]
    use = [line for line in lines if line.startswith("use_backend ")]
    rest = [line for line in lines if not line.startswith(("acl ", "use_backend "))]
    ordered = [*acls, *rest, *use, *([f"default_backend {default}"] if default else [])]
    return "\n".join([*head, *(f"    {line}" for line in ordered), ""])
