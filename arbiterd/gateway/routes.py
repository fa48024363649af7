"""Which routes a door lets through and which headers it touches. Pure text."""

from __future__ import annotations

from arbiterd.engines import engine_of
from arbiterd.engines.base import Routes
from arbiterd.gateway import rules
from arbiterd.gateway.guards import ONE_MODEL
from arbiterd.gateway.layout import LLM_KINDS, Behind
from arbiterd.gateway.paths import Paths
from arbiterd.gateway.rules import JSON, KEPT, duration_ms, refuse
from arbiterd.model.settings import Kind

# routes that are read; all others take POST
READ = frozenset(
    ("/", "/api/ps", "/api/tags", "/api/version", "/v1/models", "/version", "/health", "/metrics")
)


def allowed(one: Behind) -> list[str]:
    """Which routes this door lets through, as acl lines."""
    routes = one.routes
    named = [*routes.exact, *routes.loads, *routes.listed, *one.admin_paths]
    exact, begins = [p for p in named if p[-1] != "*"], [p[:-1] for p in named if p[-1] == "*"]
    lines = [f"acl allowed path -m str {' '.join(exact)}"] if exact else []
    if one.kind in LLM_KINDS:
        begins.append("/v1/models/")
    lines += [f"acl allowed path -m beg {' '.join(begins)}"] if begins else []
    lines += [f"acl allowed path -m reg '{pattern}'" for pattern in routes.patterns]
    if routes.local:
        lines += [
            f"acl local-only path -m str {' '.join(routes.local)}",
            "acl local-only path -m beg /api/blobs/",
            "acl from-here src 127.0.0.0/8 ::1",
        ]
    return lines


def forbid(one: Behind, door: str) -> list[str]:
    """403 for every route that is not on the list."""
    if one.routes.everything:
        return []
    text = f"%[path,json(utf8s)] is not an inference route of {door}; see allow_admin_paths"
    cond = "!allowed"
    lines = []
    if one.routes.local:
        lines.append("http-request set-var(txn.local) int(1) if local-only from-here")
        cond += " !{ var(txn.local) -m found }"
    return [*lines, *refuse(one.routes.api, 403, text, cond)]


def options(routes: Routes) -> list[str]:
    """OPTIONS on a route that is let through: which methods it takes. A page's question (Origin) that
    the door itself does not answer goes on to the engine.
    """
    some = "METH_OPTIONS !{ req.hdr(origin) -m found }"
    posts = (*routes.loads, *(path for path in routes.exact if path not in READ))
    lines = [f"acl posted path -m str {' '.join(posts)}"] if posts else ["acl posted always_false"]
    return [
        *lines,
        f'http-request return status 204 hdr Allow "POST, OPTIONS" if {some} posted',
        f'http-request return status 204 hdr Allow "GET, HEAD, POST, OPTIONS" if {some}',
    ]


def health(one: Behind, paths: Paths) -> list[str]:
    """Documented health URLs, from the arbiter's state, outside queue and limits."""
    live, name = paths.live, one.name
    lines = []
    well = rules.well(one, paths)
    version = (
        f'"version":"%[str(ver:{name}),map({live},unknown)]",' if one.kind is Kind.OLLAMA else ""
    )
    said = f"%[str(why:{name}),map({live},-)]"
    for path in one.routes.health:
        asked = f"{{ path {path} }} {{ method GET HEAD OPTIONS }}"
        up = f'{{{version}"backend":"{name}","accepting":true}}'
        down = f'{{{version}"error":"{said}","backend":"{name}","accepting":false}}'
        lines += [
            f"http-request set-var(txn.why) str(health) if {asked}",
            f"http-request return status 200 {JSON} lf-string '{up}' if {asked} {well}",
            f"http-request return status 503 {JSON} "
            f"hdr Retry-After \"%[str(ra:{name}),map({live},5)]\" lf-string '{down}' if {asked}",
        ]
    return lines


def own_host(one: Behind) -> list[str]:
    """Towards engines that refuse names they do not know: theirs; X-Forwarded-Host keeps the client's.
    And no Origin, which the door has judged.
    """
    host = engine_of(one.kind).door_host
    if not host:
        return []
    return [
        "http-request del-header origin",
        "http-request set-header X-Forwarded-Host %[req.hdr(host)] "
        "if { req.hdr(host) -m found } !{ req.hdr(x-forwarded-host) -m found }",
        f"http-request set-header Host {host}:{one.port}",
    ]


def served_by(name: str) -> list[str]:
    """Who answered, and whether the request waited here: date now, less the engine's own time, since
    the door had the whole request. Short pauses are the connect's.
    """
    waited = "{ var(txn.wait) -m int ge 5 }"
    return [
        f"http-response set-header X-Arbiter-Served-By {name} if {{ srv_name -m str engine }} !{{ res.hdr(x-arbiter-served-by) -m found }}",
        "http-response set-var-fmt(txn.tr) %Tr",
        "http-response set-var(txn.wait) date(0,ms),sub(txn.t0),sub(txn.tr)",
        f"http-response set-header X-Arbiter-Waited-Ms %[var(txn.wait)] if {waited} !{{ res.hdr(x-arbiter-waited-ms) -m found }}",
        f"http-response set-header X-Arbiter-Why %[var(txn.held)] if {waited} {{ var(txn.held) -m found }} !{{ res.hdr(x-arbiter-why) -m found }}",
        f"http-response set-header X-Arbiter-Why queue if {waited} !{{ res.hdr(x-arbiter-why) -m found }}",
    ]


def by_gate(one: Behind) -> list[str]:
    """Further requests of an LLM's own door that the gate answers or unpacks: what the engine does
    not know (HEAD, one model, a compressed body).
    """
    heads = " ".join(sorted(READ - {"/", *one.routes.health}))
    lines = [
        f"http-request set-var(txn.gate) int(1) if METH_HEAD {{ path -m str {heads} }}",
        "http-request set-var(txn.gate) int(1) if { var(txn.packed) -m found }",
        "acl by-gate var(txn.gate) -m found",
        f"http-request set-header x-arbiter-want {one.name} if by-gate !{{ var(txn.why) -m str failover }}",
        "use_backend gate if by-gate",
    ]
    if one.kind in LLM_KINDS:
        lines.insert(0, f"http-request set-var(txn.gate) int(1) if {ONE_MODEL}")
    return lines


def aside(one: Behind, paths: Paths) -> list[str]:
    """What takes none of the engine's slots: an opened metrics page, and websockets, which have a
    limit of their own since they may stay for hours.
    """
    lines = []
    if one.metrics:
        read = f"{{ path {one.metrics} }} {{ method GET HEAD }}"
        lines.append(f"use_backend aside-{one.name} if {read}")
    if one.websockets:
        most = f"{{ srv_conn(ws-{one.name}/engine) ge {one.max_in_flight} }}"
        text = f"{one.name}: {one.max_in_flight} websockets are open, the most"
        again = f'hdr Retry-After "%[str(rf:{one.name}),map({paths.live},5)]" '
        lines += [
            "acl websocket req.hdr(upgrade) -m str -i websocket",
            "http-request set-var(txn.why) str(shed) if websocket { var(txn.st) -m str shed }",
            f"http-request set-var(txn.why) str(full) if websocket {most}",
            *refuse(one.routes.api, 503, text, f"websocket {most}", again),
            f"use_backend ws-{one.name} if websocket !{{ var(txn.why) -m str shed }}",
        ]
    return lines


def aside_backends(one: Behind, sent: list[str]) -> list[str]:
    """The engine once more, outside of its slots. Without maintenance: a drained engine tells its
    metrics. ``sent``: lines about the headers that it is sent.
    """
    out = []
    served = "".join(f"    {line}\n" for line in (*sent, *served_by(one.name)))
    if one.metrics:
        out.append(
            f"backend aside-{one.name}\n    timeout server 10s\n    timeout connect 1s\n{served}"
            f"    server engine 127.0.0.1:{one.port} maxconn 4 {KEPT}\n"
        )
    if one.websockets:
        out.append(
            f"backend ws-{one.name}\n    timeout tunnel 1h\n"
            f"    timeout server {duration_ms(one.request_timeout_s)}\n{served}"
            f"    server engine 127.0.0.1:{one.port} maxconn {one.max_in_flight}\n"
        )
    return out
