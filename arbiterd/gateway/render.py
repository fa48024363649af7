"""HAProxy's configuration, rendered from the layout. Pure text; tests guard its decisive lines.

Limits, states and failover are not in here: they live in the live map and are set by the Runtime
API, so that no change of them ever needs a reload (a reload doubles the limit while old streams
live: docs/facts/gateway.md).
"""

from __future__ import annotations

from arbiterd.gateway.layout import LLM_DOOR, Behind, Door, Layout
from arbiterd.gateway.paths import GROUP, Paths
from arbiterd.model.settings import Kind

BUFFER_BYTES = 65536  # larger ones cost CPU per request and per token; 32 MiB broke streaming
CONNECT_MS = 200  # loopback; also the pause before the retry that finds the substitute
MAX_CONNECTIONS = 4000

_OPENAI = ('{"error":{"message":"', '","type":"server_error","param":null,"code":"overloaded"}}')
_PLAIN = ('{"error":"', '"}')
_JSON = "content-type application/json"


def render(layout: Layout, paths: Paths, *, systemd: bool) -> str:
    """The whole file."""
    parts = [_global(paths, systemd=systemd), _defaults(layout, paths)]
    for door in layout.doors:
        if door.name == LLM_DOOR:
            parts.append(_llm_door(layout, door, paths))
        elif door.grpc:
            parts.append(_grpc_door(layout, door, layout.behind(door.backend), paths))
        else:
            parts.append(_door(layout, door, layout.behind(door.backend), paths))
    for one in layout.backends:
        if one.inner:
            parts.append(_inner(layout, one, paths, systemd=systemd))
        parts += _backends(one, paths)
    parts.append(_gate(layout, paths))
    return "\n".join(parts)


def duration_ms(seconds: float) -> str:
    """As HAProxy writes times."""
    return f"{max(1, round(seconds * 1000))}ms"


def engine(one: Behind, *, grpc: bool = False) -> str:
    """backend/server, as the Runtime API names it."""
    return f"{backend_of(one.name, grpc=grpc)}/engine"


def backend_of(name: str, *, grpc: bool = False) -> str:
    """Name of HAProxy's backend."""
    return f"be-{name}-grpc" if grpc else f"be-{name}"


def _global(paths: Paths, *, systemd: bool) -> str:
    group = f" group {GROUP}" if systemd else ""
    return f"""\
# Rendered by gpu-arbiter; edits are overwritten.
global
    log {paths.log} len 4096 format raw local0
    stats socket {paths.runtime} mode 660{group} level admin expose-fd listeners
    stats timeout 30s
    maxconn {MAX_CONNECTIONS}
    nbthread 1
    tune.bufsize {BUFFER_BYTES}
    tune.lua.session-timeout 0
    lua-load {paths.lua}
"""


def _defaults(layout: Layout, paths: Paths) -> str:
    longest = max((one.request_timeout_s for one in layout.backends), default=900.0)
    log = (
        '{"fe":"%f","be":"%b","st":%ST,"term":"%ts","tw":%Tw,"tr":%Tr,"ta":%Ta,'
        '"b":"%[var(txn.b)]","why":"%[var(txn.why)]","out":%B}'
    )
    return f"""\
defaults
    mode http
    log global
    option dontlognull
    log-format '{log}'
    option http-no-delay
    option abortonclose
    option contstats
    option redispatch 1
    retries 2
    retry-on conn-failure
    timeout connect {CONNECT_MS}ms
    timeout client {duration_ms(longest)}
    timeout server {duration_ms(longest)}
    timeout http-request 60s
    timeout http-keep-alive 60s
    timeout queue 10s
    # every frontend: {paths.live}
"""


def _errors() -> str:
    """Errors that HAProxy makes itself, in the shape of the door (txn.e1, txn.e2)."""
    texts = {
        502: "%[var(txn.b)]: the engine broke off before it answered",
        503: "%[var(txn.b)]: no place became free in time, or the engine is not there",
        504: "%[var(txn.b)]: the engine did not answer within its request_timeout",
    }
    retry = 'hdr Retry-After "%[var(txn.rf)]"'
    lines = [
        f"    http-error status {status} {_JSON} lf-string '%[var(txn.e1)]{text}%[var(txn.e2)]' {retry}"
        for status, text in texts.items()
    ]
    plain = {
        400: "this is no HTTP request",
        403: "not allowed",
        408: "the request took too long to arrive",
        413: "the body is too large",
    }
    lines += [
        f'    http-error status {status} {_JSON} string \'{{"error":"{text}"}}\''
        for status, text in plain.items()
    ]
    return "\n".join(lines)


def _shape(api: str) -> list[str]:
    """Both ends of the error body."""

    def both(shape: tuple[str, str], cond: str = "") -> list[str]:
        return [
            f"http-request set-var-fmt(txn.e1) '{shape[0]}'{cond}",
            f"http-request set-var-fmt(txn.e2) '{shape[1]}'{cond}",
        ]

    if api == "openai":
        return both(_OPENAI)
    lines = both(_PLAIN)
    if api == "openai_below_v1":
        lines += both(_OPENAI, " if { path_beg /v1/ }")
    return lines


def _open(layout: Layout, name: str, bind: str, api: str) -> list[str]:
    """The beginning of every frontend."""
    lines = ["http-request lua.settle unless { var(proc.settled) -m found }", *_shape(api)]
    if not name.startswith("in-"):
        if layout.trust_priority:
            lines.append(
                "http-request set-var(txn.high) int(1) if { req.hdr(x-priority) -m str high }"
            )
        lines.append("http-request del-header x-arbiter- -m beg")
        if layout.trust_priority:
            lines.append(
                "http-request set-header x-arbiter-priority high if { var(txn.high) -m found }"
            )
    lines.append(
        "http-request set-priority-class int(-10) if { req.hdr(x-arbiter-priority) -m str high }"
    )
    head = [f"frontend {name}", f"    bind {bind}", "    option http-buffer-request", _errors()]
    return [*head, *(f"    {line}" for line in lines)]


def _bind(layout: Layout, door: Door) -> str:
    host = f"[{layout.bind}]" if ":" in layout.bind else layout.bind
    return f"{host}:{door.port}" + (" proto h2" if door.grpc else "")


def _of(name: str, paths: Paths) -> list[str]:
    """Which backend this request is for, and what the map says of it."""
    live = paths.live
    return [
        f"http-request set-var(txn.b) str({name})",
        f"http-request set-var(txn.st) str(st:{name}),map({live},shed)",
        f"http-request set-var(txn.rf) str(rf:{name}),map({live},5)",
    ]


def _refuse(paths: Paths, *, name: str, grpc: bool = False) -> list[str]:
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
    again = f'http-request return status 503 {_JSON} hdr Retry-After "%[var(txn.ra)]"'
    why = "{ var(txn.why) -m str shed full }"
    lines += [
        f"{again} {advice} {body} if {why} {{ var(txn.adv) -m found }}",
        f"{again} {body} if {why}",
    ]
    return lines


def _admit(one: Behind, paths: Paths, *, grpc: bool = False) -> list[str]:
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
    return [*lines, *_refuse(paths, name=name, grpc=grpc)]


def _model(paths: Paths) -> list[str]:
    """The model named by the body, and whether the body goes on beyond the buffer."""
    del paths
    return [
        "http-request set-var(txn.model) req.body,json_query('$.model') if METH_POST",
        "http-request set-var(txn.len) req.body_len if METH_POST",
        "http-request set-var(txn.big) int(1) if METH_POST { req.body_size,sub(txn.len) gt 0 }",
        # chunked: its size is not known yet, a full buffer tells (half of it is kept for headers)
        f"http-request set-var(txn.big) int(1) if METH_POST {{ req.body_len ge {BUFFER_BYTES - 4096} }}",
    ]


def _substitute(name: str, paths: Paths) -> list[str]:
    """Failover, before the first byte: to whom the live map says, through the gate."""
    live = paths.live
    dead = f"!{{ srv_is_up({backend_of(name)}/engine) }}"
    found = "{ var(txn.fo) -m found }"
    mine = f"{{ var(txn.b) -m str {name} }}"
    return [
        f"http-request set-var(txn.fo) str(fo:{name}:),concat(,txn.model),map({live}) if {mine} {{ var(txn.model) -m found }}",
        f"http-request set-var(txn.fo) str(fo:{name}:*),map({live}) if {mine} !{{ var(txn.model) -m found }} {{ var(txn.big) -m found }}",
        f"http-request set-var(txn.why) str(failover) if {mine} {found} {{ var(txn.st) -m str away hold shed }}",
        f"http-request set-var(txn.why) str(failover) if {mine} {found} {dead}",
        f"http-request set-header x-arbiter-want %[var(txn.fo)] if {mine} {{ var(txn.why) -m str failover }}",
    ]


def _allowed(one: Behind) -> list[str]:
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


def _health(one: Behind, paths: Paths) -> list[str]:
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
            f"http-request return status 200 {_JSON} lf-string '{up}' if {asked} {well}",
            f"http-request return status 503 {_JSON} "
            f"hdr Retry-After \"%[str(ra:{name}),map({live},5)]\" lf-string '{down}' if {asked}",
        ]
    return lines


def _forbid(one: Behind, door: str) -> list[str]:
    if one.routes.everything:
        return []
    text = f"%[path] is no route that the door of {door} lets through; see allow_admin_paths"
    refuse = (
        f"http-request return status 403 {_JSON} lf-string '%[var(txn.e1)]{text}%[var(txn.e2)]'"
    )
    if one.routes.local:
        return [
            "http-request set-var(txn.local) int(1) if local-only from-here",
            f"{refuse} if !allowed !{{ var(txn.local) -m found }}",
        ]
    return [f"{refuse} unless allowed"]


def _door(layout: Layout, door: Door, one: Behind, paths: Paths) -> str:
    """The public door of one backend."""
    lines = [*_of(one.name, paths), *_allowed(one), *_health(one, paths), *_forbid(one, door.name)]
    lines.append(f"http-request set-header x-arbiter-door {one.name}")
    if one.inner:
        lines += _model(paths)
    if one.standin:
        lines += _substitute(one.name, paths)
    if one.gated:
        # The gate's own way in (the inner door) counts, queues and refuses; only shed is told here.
        gated = f"{{ path -m str {' '.join((*one.routes.loads, *one.routes.listed))} }}"
        lines += [
            f"http-request set-var(txn.why) str(shed) if {{ var(txn.st) -m str shed }} "
            f"!{{ var(txn.why) -m found }} {gated}",
            *_refuse(paths, name=one.name),
            f"http-request set-header x-arbiter-want {one.name} if {gated} !{{ var(txn.why) -m str failover }}",
            f"use_backend gate if {gated}",
        ]
    if one.standin:
        lines.append("use_backend gate if { var(txn.why) -m str failover }")
    lines += _admit(one, paths)
    head = _open(layout, f"door-{door.name}", _bind(layout, door), one.routes.api)
    # rules of one kind run in order, but HAProxy wants use_backend behind all of http-request
    return _text(head, lines, backend_of(one.name))


def _text(head: list[str], lines: list[str], default: str) -> str:
    acls = [line for line in lines if line.startswith("acl ")]
    use = [line for line in lines if line.startswith("use_backend ")]
    rest = [line for line in lines if line not in acls and line not in use]
    ordered = [*acls, *rest, *use, *([f"default_backend {default}"] if default else [])]
    first, bind, option, errors, *rules = head
    body = "\n".join(f"    {line}" for line in ordered)
    return "\n".join([first, bind, option, errors, *rules, body, ""])


def _inner(layout: Layout, one: Behind, paths: Paths, *, systemd: bool) -> str:
    """The gate's way to an LLM: here its limit, queue and state hold."""
    group = f" group {GROUP}" if systemd else ""
    bind = f"unix@{paths.inner(one.name)} mode 660{group}"
    head = _open(layout, f"in-{one.name}", bind, one.routes.api)
    return _text(head, [*_of(one.name, paths), *_admit(one, paths)], backend_of(one.name))


def _grpc_door(layout: Layout, door: Door, one: Behind, paths: Paths) -> str:
    """TensorFlow Serving's gRPC: every refusal is UNAVAILABLE."""
    paths_ok = " ".join(one.routes.grpc)
    denied = (
        "http-request return status 200 hdr grpc-status 7 "
        f'hdr grpc-message "%[path] is not let through" file {paths.files / "empty"} '
        f"unless {{ path -m beg {paths_ok} }}"
    )
    # a `return` with an empty body carries no content type of its own, and Go's client wants one
    typed = "http-after-response set-header content-type application/grpc if { status 200 }"
    lines = [*_of(one.name, paths), denied, *_admit(one, paths, grpc=True), typed]
    head = _open(layout, f"door-{door.name}", _bind(layout, door), "plain")
    head[2] = "    # no body is read here: gRPC streams it"
    return _text(head, lines, backend_of(one.name, grpc=True))


def _llm_door(layout: Layout, door: Door, paths: Paths) -> str:
    """One port for every LLM: the model named by the body picks the backend."""
    live = paths.live
    llms = [one for one in layout.backends if one.kind is not Kind.TENSORFLOW]
    allowed = sorted(
        {p for one in llms for p in (*one.routes.exact, *one.routes.loads)} - {"/", "/version"}
    )
    error = f"{_JSON} lf-string '%[var(txn.e1)]%[var(txn.say)]%[var(txn.e2)]'"
    listed = "{ path -m str /v1/models /api/tags }"
    lines = [
        "http-request set-var(txn.rf) int(5)",
        "http-request set-header x-arbiter-door llm",
        f"http-request set-var-fmt(txn.say) '%[path] is no inference route' unless {{ path -m str /health /v1/models /api/tags {' '.join(allowed)} }}",
        f"http-request return status 403 {error} if {{ var(txn.say) -m found }}",
    ]
    for one in llms:
        lines.append(
            f"http-request return status 200 {_JSON} string '{{\"accepting\":true}}' if {{ path /health }} "
            f"{{ str(ok:{one.name}),map({live},0) -m str 1 }} {{ srv_is_up({backend_of(one.name)}/engine) }}"
        )
    lines += [
        f'http-request return status 503 {_JSON} hdr Retry-After 5 string \'{{"error":"no LLM takes work"}}\' if {{ path /health }}',
        *_model(paths),
        f"http-request set-var(txn.b) str(m:),concat(,txn.model),map({live}) if {{ var(txn.model) -m found }}",
        f"http-request set-var(txn.b) str(m:*),map({live}) if {{ var(txn.model) -m found }} !{{ var(txn.b) -m found }}",
        "http-request set-var(txn.sniff) int(1) if !{ var(txn.model) -m found } { var(txn.big) -m found }",
        f"http-request set-var(txn.sniff) int(1) if {listed}",
        "http-request set-var-fmt(txn.say) 'the body names no model' if !{ var(txn.model) -m found } !{ var(txn.sniff) -m found }",
        f"http-request return status 400 {error} if {{ var(txn.say) -m found }}",
        "http-request set-var-fmt(txn.say) 'no backend has the model %[var(txn.model),json(utf8s)]' if !{ var(txn.b) -m found } !{ var(txn.sniff) -m found }",
        f"http-request return status 404 {error} if {{ var(txn.say) -m found }}",
        f"http-request set-var(txn.st) str(st:),concat(,txn.b),map({live},shed) if {{ var(txn.b) -m found }}",
        f"http-request set-var(txn.rf) str(rf:),concat(,txn.b),map({live},5) if {{ var(txn.b) -m found }}",
    ]
    uses = ["use_backend gate if { var(txn.sniff) -m found }"]
    for one in llms:
        mine = f"{{ var(txn.b) -m str {one.name} }}"
        if one.kind is not Kind.OLLAMA:
            lines += [
                f"http-request set-var-fmt(txn.say) '%[path] is a route of Ollama; {one.name} has the model: use /v1' if {mine} {{ path_beg /api/ }}",
                f"http-request return status 404 {error} if {{ var(txn.say) -m found }}",
            ]
        if one.standin:
            lines += _substitute(one.name, paths)
        guarded = _admit(one, paths) if not one.gated else _shed_only(one, paths)
        lines += [_guard(line, mine) for line in guarded]
        if one.gated:
            lines.append(
                f"http-request set-header x-arbiter-want {one.name} if {mine} !{{ var(txn.why) -m str failover }}"
            )
    uses.append("use_backend gate if { var(txn.why) -m str failover }")
    uses += [
        f"use_backend {'gate' if one.gated else backend_of(one.name)} if {{ var(txn.b) -m str {one.name} }}"
        for one in llms
    ]
    head = _open(layout, f"door-{door.name}", _bind(layout, door), "openai_below_v1")
    return _text(head, [*lines, *uses], "")


def _shed_only(one: Behind, paths: Paths) -> list[str]:
    shed = (
        "http-request set-var(txn.why) str(shed) if { var(txn.st) -m str shed } "
        "!{ var(txn.why) -m found }"
    )
    return [shed, *_refuse(paths, name=one.name)]


def _guard(line: str, condition: str) -> str:
    """The same rule, for one backend of several."""
    if " unless " in line:
        line, _, cond = line.rpartition(" unless ")
        return f"{line} if {condition} !{cond}"
    if " if " in line:
        line, _, cond = line.rpartition(" if ")
        return f"{line} if {condition} {cond}"
    return f"{line} if {condition}"


def _backends(one: Behind, paths: Paths) -> list[str]:
    """The engine itself: one server, one counter."""
    check = "check inter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down"
    # uvicorn closes idle connections after 5 s: a kept one would race with the next request
    pool = " pool-max-conn 0" if one.inner else ""
    lines = [
        f"backend {backend_of(one.name)}",
        f"    timeout server {duration_ms(one.request_timeout_s)}",
        f"    timeout queue {duration_ms(one.queue_timeout_s)}",
        "    http-request del-header x-arbiter- -m beg" if not one.standin else "",
        f"    server engine 127.0.0.1:{one.port} maxconn {one.max_in_flight} {check}{pool}",
    ]
    if one.standin:
        # the first request that finds the engine dead: after `timeout connect` it goes to the gate
        lines.append(f"    server standin unix@{paths.gate} backup")
    out = ["\n".join(line for line in lines if line) + "\n"]
    if one.grpc_port:
        half = max(1, one.max_in_flight // 2)
        out[0] = out[0].replace(
            f"maxconn {one.max_in_flight} ", f"maxconn {max(1, one.max_in_flight - half)} "
        )
        out.append(
            "\n".join(
                (
                    f"backend {backend_of(one.name, grpc=True)}",
                    f"    timeout server {duration_ms(one.request_timeout_s)}",
                    f"    timeout queue {duration_ms(one.queue_timeout_s)}",
                    f"    server engine 127.0.0.1:{one.grpc_port} proto h2 maxconn {half} {check}\n",
                )
            )
        )
    return out


def _gate(layout: Layout, paths: Paths) -> str:
    if not any(one.inner for one in layout.backends):
        return ""
    return f"""\
backend gate
    http-request set-header x-arbiter-src %[src]
    server gate unix@{paths.gate} check inter 500ms fall 2 rise 1
"""


LUA = """\
-- Rendered by gpu-arbiter. Two waits that HAProxy has no directive for.
local live = Map.new("{live}", Map._str)
local waiting = {{}}

-- A fresh worker (start, reload by anybody) waits until the arbiter has set its limits, so that old
-- and new worker together never exceed them. Without an arbiter it goes on after a second.
core.register_action("settle", {{ "http-req" }}, function(txn)
    local pid = core.get_info()["Pid"]
    for _ = 1, 100 do
        if live:lookup("pid:" .. pid) then break end
        core.msleep(10)
    end
    txn:set_var("proc.settled", true)
end)

-- Hold a request until its backend is back, at most so many and so long.
core.register_action("hold", {{ "http-req" }}, function(txn, name, most, ms)
    if (waiting[name] or 0) >= tonumber(most) then return end
    waiting[name] = (waiting[name] or 0) + 1
    local left = tonumber(ms)
    while left > 0 and live:lookup("st:" .. name) == "hold" do
        core.msleep(20)
        left = left - 20
    end
    waiting[name] = waiting[name] - 1
end, 3)
"""


def lua(paths: Paths) -> str:
    """HAProxy's Lua file."""
    return LUA.format(live=paths.live)
