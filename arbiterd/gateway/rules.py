"""Rules that doors are made of: each function gives HAProxy's lines for one question. Pure text."""

from __future__ import annotations

from arbiterd.gateway.layout import Behind
from arbiterd.gateway.paths import Paths
from arbiterd.model.settings import Kind

BUFFER_BYTES = 65536  # larger ones cost CPU per request and per token; 32 MiB broke streaming
CONNECT_MS = 200  # loopback; also the pause before the retry that finds the substitute
MAX_CONNECTIONS = 4000

# the beginning of an error, its end when we cannot (5xx), its end when the client must not (4xx)
_OPENAI = (
    '{"error":{"message":"',
    '","type":"server_error","param":null,"code":"overloaded"}}',
    '","type":"invalid_request_error","param":null,"code":null}}',
)
_PLAIN = ('{"error":"', '"}', '"}')
JSON = "content-type application/json"


def duration_ms(seconds: float) -> str:
    """As HAProxy writes times."""
    return f"{max(1, round(seconds * 1000))}ms"


def engine(one: Behind, *, grpc: bool = False) -> str:
    """backend/server, as the Runtime API names it."""
    return f"{backend_of(one.name, grpc=grpc)}/engine"


def backend_of(name: str, *, grpc: bool = False) -> str:
    """Name of HAProxy's backend."""
    return f"be-{name}-grpc" if grpc else f"be-{name}"


def errors() -> str:
    """Errors that HAProxy makes itself, in the shape of the door (txn.e1, txn.e2)."""
    texts = {
        502: "%[var(txn.b)]: the engine broke off before it answered",
        503: "%[var(txn.b)]: no place became free in time, or the engine is not there",
        504: "%[var(txn.b)]: the engine did not answer within its request_timeout",
    }
    retry = 'hdr Retry-After "%[var(txn.rf)]"'
    lines = [
        f"    http-error status {status} {JSON} lf-string '%[var(txn.e1)]{text}%[var(txn.e2)]' {retry}"
        for status, text in texts.items()
    ]
    plain = {
        400: "this is no HTTP request",
        403: "not allowed",
        408: "the request took too long to arrive",
        413: "the body is too large",
    }
    lines += [
        f'    http-error status {status} {JSON} string \'{{"error":"{text}"}}\''
        for status, text in plain.items()
    ]
    return "\n".join(lines)


def shape(api: str) -> list[str]:
    """Both ends of the error body."""

    def both(shape: tuple[str, str, str], cond: str = "") -> list[str]:
        return [
            f"http-request set-var-fmt(txn.e1) '{shape[0]}'{cond}",
            f"http-request set-var-fmt(txn.e2) '{shape[1]}'{cond}",
            f"http-request set-var-fmt(txn.e4) '{shape[2]}'{cond}",
        ]

    if api == "openai":
        return both(_OPENAI)
    lines = both(_PLAIN)
    if api == "openai_below_v1":
        lines += both(_OPENAI, " if { path_beg /v1/ }")
    return lines


def about(name: str, paths: Paths) -> list[str]:
    """Which backend this request is for, and what the map says of it."""
    live = paths.live
    return [
        f"http-request set-var(txn.b) str({name})",
        f"http-request set-var(txn.st) str(st:{name}),map({live},shed)",
        f"http-request set-var(txn.rf) str(rf:{name}),map({live},5)",
    ]


def refuse(paths: Paths, *, name: str, grpc: bool = False) -> list[str]:
    """503 with its reason while ``txn.why`` is set."""
    live = paths.live
    lines = [
        f"http-request set-var(txn.ra) str(ra:{name}),map({live},30) if {{ var(txn.why) -m str shed }}",
        "http-request set-var(txn.ra) var(txn.rf) unless { var(txn.ra) -m found }",
        f"http-request set-var(txn.say) str(why:{name}),map({live},stopped) if {{ var(txn.why) -m str shed }}",
        f"http-request set-var-fmt(txn.say) '{name} is full: %[srv_conn({backend_of(name)}/engine)] in flight, "
        f"%[queue({backend_of(name)})] queued' if {{ var(txn.why) -m str full }}",
        f"http-request set-var(txn.adv) str(adv:{name}),map({live})",
    ]
    if grpc:
        lines.append(
            "http-request return status 200 hdr grpc-status 14 "
            'hdr grpc-message "%[var(txn.say)]; retry after %[var(txn.ra)] s" hdr Retry-After "%[var(txn.ra)]" '
            f"file {paths.files / 'empty'} if {{ var(txn.why) -m str shed full }}"
        )
        return lines
    advice = 'hdr X-Arbiter-Advice "%[var(txn.adv)]"'
    body = "lf-string '%[var(txn.e1)]%[var(txn.say)]%[var(txn.e2)]'"
    again = f'http-request return status 503 {JSON} hdr Retry-After "%[var(txn.ra)]"'
    why = "{ var(txn.why) -m str shed full }"
    lines += [
        f"{again} {advice} {body} if {why} {{ var(txn.adv) -m found }}",
        f"{again} {body} if {why}",
    ]
    return lines


def admit(one: Behind, paths: Paths, *, grpc: bool = False) -> list[str]:
    """Hold, shed, or refuse because the queue is full; else the request goes on."""
    live, name = paths.live, one.name
    here = backend_of(name, grpc=grpc)
    hold_ms = round(one.queue_timeout_s * 1000)
    idle = "!{ var(txn.why) -m found }"
    lines = [
        f"http-request lua.hold {name} {max(1, one.max_queue)} {hold_ms} if {{ var(txn.st) -m str hold }} {idle}",
        f"http-request set-var(txn.st) str(st:{name}),map({live},shed) if {{ var(txn.st) -m str hold }}",
        f"http-request set-var(txn.why) str(shed) if {{ var(txn.st) -m str shed hold }} {idle}",
        f"http-request set-var(txn.q) str(q:{name}),map({live},0),add(0)",
        f"http-request set-var(txn.lim) str(lim:{here}),map({live},{one.max_in_flight}),add(0)",
    ]
    waiting = f"queue({here}),sub(txn.q) ge 0"
    if one.grpc_port:
        other = backend_of(name, grpc=not grpc)
        lines.append(f"http-request set-var(txn.q2) queue({other})")
        waiting = f"queue({here}),add(txn.q2),sub(txn.q) ge 0"
    lines.append(
        f"http-request set-var(txn.why) str(full) if !{{ var(txn.why) -m found }} {{ {waiting} }} "
        f"{{ srv_conn({here}/engine),sub(txn.lim) ge 0 }}"
    )
    return [*lines, *refuse(paths, name=name, grpc=grpc)]


def model(paths: Paths) -> list[str]:
    """The model named by the body, and whether the body goes on beyond the buffer."""
    del paths
    return [
        "http-request set-var(txn.model) req.body,json_query('$.model') if METH_POST",
        "http-request set-var(txn.len) req.body_len if METH_POST",
        "http-request set-var(txn.big) int(1) if METH_POST { req.body_size,sub(txn.len) gt 0 }",
        # chunked: its size is not known yet, a full buffer tells (half of it is kept for headers)
        f"http-request set-var(txn.big) int(1) if METH_POST {{ req.body_len ge {BUFFER_BYTES - 4096} }}",
    ]


def substitute(one: Behind, paths: Paths) -> list[str]:
    """Failover, before the first byte: to whom the live map says, through the gate."""
    live, name = paths.live, one.name
    dead = f"!{{ srv_is_up({backend_of(name)}/engine) }}"
    found = "{ var(txn.fo) -m found }"
    mine = f"{{ var(txn.b) -m str {name} }}"
    if one.gated:  # nobody else speaks Ollama's own API
        mine += " { path_beg /v1/ }"
    return [
        f"http-request set-var(txn.fo) str(fo:{name}:),concat(,txn.model),map({live}) if {mine} {{ var(txn.model) -m found }}",
        f"http-request set-var(txn.fo) str(fo:{name}:*),map({live}) if {mine} !{{ var(txn.model) -m found }} {{ var(txn.big) -m found }}",
        f"http-request set-var(txn.why) str(failover) if {mine} {found} {{ var(txn.st) -m str away hold shed }}",
        f"http-request set-var(txn.why) str(failover) if {mine} {found} {dead}",
        f"http-request set-header x-arbiter-want %[var(txn.fo)] if {mine} {{ var(txn.why) -m str failover }}",
    ]


def allowed(one: Behind) -> list[str]:
    """Which routes this door lets through, as acl lines."""
    routes = one.routes
    exact = [*routes.exact, *routes.loads, *routes.listed, *one.admin_paths]
    lines = [f"acl allowed path -m str {' '.join(exact)}"] if exact else []
    lines += [f"acl allowed path -m reg '{pattern}'" for pattern in routes.patterns]
    if routes.local:
        lines += [
            f"acl local-only path -m str {' '.join(routes.local)}",
            "acl local-only path -m beg /api/blobs/",
            "acl from-here src 127.0.0.0/8 ::1",
        ]
    return lines


def health(one: Behind, paths: Paths) -> list[str]:
    """Documented health URLs, from the arbiter's state, outside queue and limits."""
    live, name = paths.live, one.name
    lines = []
    well = f"{{ str(ok:{name}),map({live},0) -m str 1 }} {{ srv_is_up({backend_of(name)}/engine) }}"
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


def forbid(one: Behind, door: str) -> list[str]:
    """403 for every route that is not on the list."""
    if one.routes.everything:
        return []
    text = f"%[path] is no route that the door of {door} lets through; see allow_admin_paths"
    refuse = f"http-request return status 403 {JSON} lf-string '%[var(txn.e1)]{text}%[var(txn.e4)]'"
    if one.routes.local:
        return [
            "http-request set-var(txn.local) int(1) if local-only from-here",
            f"{refuse} if !allowed !{{ var(txn.local) -m found }}",
        ]
    return [f"{refuse} unless allowed"]


def shed_only(one: Behind, paths: Paths) -> list[str]:
    """Refuse while it is shed; limit and queue are the inner door's."""
    shed = (
        "http-request set-var(txn.why) str(shed) if { var(txn.st) -m str shed } "
        "!{ var(txn.why) -m found }"
    )
    return [shed, *refuse(paths, name=one.name)]


def guard(line: str, condition: str) -> str:
    """The same rule, for one backend of several."""
    if " unless " in line:
        line, _, cond = line.rpartition(" unless ")
        return f"{line} if {condition} !{cond}"
    if " if " in line:
        line, _, cond = line.rpartition(" if ")
        return f"{line} if {condition} {cond}"
    return f"{line} if {condition}"
