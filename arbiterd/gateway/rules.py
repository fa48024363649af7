"""Rules that doors are made of: each function gives HAProxy's lines for one question. Pure text."""

from __future__ import annotations

from arbiterd.gateway.layout import Behind
from arbiterd.gateway.paths import Paths

BUFFER_BYTES = 65536  # larger ones cost CPU per request and per token; 32 MiB broke streaming
CONNECT_MS = 200  # loopback; also the pause before the retry that finds the substitute
# Connections to an engine that wait for a next request. HAProxy has no longest idle time: each delay it ends
# half of what is over the recent need, so that of 64 the last one goes within 14 delays (docs/facts/gateway.md).
# Every engine leaves idle ones open longer (docs/facts/engines.md), or a request could meet its closing.
KEPT = "pool-max-conn 64 pool-purge-delay 200ms"
PATIENT_MS = 3000  # where nobody stands in: a SYN that the engine dropped is sent again after 1 s

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


def refuse(api: str, status: int, text: str, cond: str, more: str = "") -> list[str]:
    """``return`` lines with this sentence in the shape of the API that was asked."""
    end = 1 if status >= 500 else 2
    shapes = {"openai": [(_OPENAI, "")], "plain": [(_PLAIN, "")]}.get(
        api, [(_OPENAI, " { path_beg /v1/ }"), (_PLAIN, "")]
    )
    return [
        f"http-request return status {status} {JSON} {more}lf-string '{ends[0]}{text}{ends[end]}' if {cond}{only}"
        for ends, only in shapes
    ]


def restate(status: int, text: str) -> list[str]:
    """An answer of this status that is no JSON, told in the shape of the API; txn.v1: it is OpenAI's."""
    plain = f"{{ status {status} }} !{{ res.hdr(content-type) -m beg application/json }}"
    return [
        f"http-response return status {status} {JSON} lf-string '{ends[0]}{text}{ends[2]}' if {plain}{only}"
        for ends, only in ((_OPENAI, " { var(txn.v1) -m found }"), (_PLAIN, ""))
    ]


def errors(api: str, paths: Paths) -> str:
    """Errors that HAProxy makes itself, in the shape of the door."""
    texts = {
        502: "%[var(txn.b)]: the engine broke off before it answered",
        503: "%[var(txn.b)]: no place became free in time, or the engine is not there",
        504: "%[var(txn.b)]: the engine did not answer within its request_timeout",
    }
    first, last = {"openai": _OPENAI[:2], "plain": _PLAIN[:2]}.get(
        api, ("%[var(txn.e1)]", "%[var(txn.e2)]")
    )
    retry = f'hdr Retry-After "{retry_full(paths)}"'
    lines = [
        f"    http-error status {status} {JSON} lf-string '{first}{text}{last}' {retry}"
        for status, text in texts.items()
    ]
    plain = {
        400: "this is no HTTP request, or its header is larger than 63 KiB",
        403: "not allowed",
        408: "the request took too long to arrive",
        413: "the body is too large",
    }
    # made before any rule has run: the door's own shape, not the path's
    before, _, after = _OPENAI if api == "openai" else _PLAIN
    lines += [
        f"    http-error status {status} {JSON} string '{before}{text}{after}'"
        for status, text in plain.items()
    ]
    return "\n".join(lines)


def retry_full(paths: Paths) -> str:
    """When a place should be free, for the backend of this request. Looked up only when it is told."""
    return f"%[str(rf:),concat(,txn.b),map({paths.live},5)]"


def shape(api: str) -> list[str]:
    """Both ends of an error's body, where the door speaks two dialects; else they stand in the text."""
    if api != "openai_below_v1":
        return []
    lines = []
    for ends, cond in ((_PLAIN, ""), (_OPENAI, " if { path_beg /v1/ }")):
        names = ("txn.e1", "txn.e2", "txn.e4")
        lines += [
            f"http-request set-var-fmt({name}) '{end}'{cond}"
            for name, end in zip(names, ends, strict=True)
        ]
    return lines


def well(one: Behind, paths: Paths) -> str:
    """Condition: the arbiter and HAProxy both say that it takes work."""
    return f"{{ str(ok:{one.name}),map({paths.live},0) -m str 1 }} {{ srv_is_up({backend_of(one.name)}/engine) }}"


def about(name: str, paths: Paths) -> list[str]:
    """Which backend this request is for, and what the map says of it."""
    return [
        f"http-request set-var(txn.b) str({name})",
        f"http-request set-var(txn.st) str(st:{name}),map({paths.live},shed)",
    ]


def refusal_of(name: str, *, grpc: bool = False) -> str:
    """Name of the backend that says no."""
    return f"no-{name}-grpc" if grpc else f"no-{name}"


def refusal(one: Behind, paths: Paths, *, grpc: bool = False) -> str:
    """A backend without a server: only refused requests pay for finding the words."""
    live, name, here = paths.live, one.name, backend_of(one.name, grpc=grpc)
    shed, full = "{ var(txn.why) -m str shed }", "{ var(txn.why) -m str full }"
    lines = [
        f"backend {refusal_of(name, grpc=grpc)}",
        f"http-request set-var(txn.ra) str(ra:{name}),map({live},30) if {shed}",
        f"http-request set-var(txn.say) str(why:{name}),map({live},stopped) if {shed}",
        f"http-request set-var(txn.ra) str(rf:{name}),map({live},5) if {full}",
        f"http-request set-var-fmt(txn.say) '{name} is full: %[srv_conn({here}/engine)] in flight, %[queue({here})] queued' if {full}",
    ]
    if grpc:
        lines.append(
            "http-request return status 200 hdr grpc-status 14 "
            'hdr grpc-message "%[var(txn.say)]; retry after %[var(txn.ra)] s" hdr Retry-After "%[var(txn.ra)]" '
            f"file {paths.files / 'empty'}"
        )
        return "\n    ".join(lines) + "\n"
    again = f'http-request return status 503 {JSON} hdr Retry-After "%[var(txn.ra)]"'
    shapes = {"openai": [(_OPENAI, "")], "plain": [(_PLAIN, "")]}.get(
        one.routes.api, [(_OPENAI, " if { path_beg /v1/ }"), (_PLAIN, "")]
    )
    lines += [
        f"{again} lf-string '{ends[0]}%[var(txn.say)]{ends[1]}'{cond}" for ends, cond in shapes
    ]
    advice = f"str(adv:{name}),map({live})"
    lines.append(
        f"http-after-response set-header X-Arbiter-Advice %[{advice}] if {{ {advice} -m found }}"
    )
    return "\n    ".join(lines) + "\n"


def admit(one: Behind, paths: Paths, *, grpc: bool = False) -> list[str]:
    """Hold, shed, or refuse because the queue is full; else the request goes on.

    The numbers are looked up only while somebody waits: an idle door costs next to nothing.
    """
    live, name = paths.live, one.name
    here = backend_of(name, grpc=grpc)
    hold_ms = round(one.queue_timeout_s * 1000)
    idle, busy = "!{ var(txn.why) -m found }", f"busy-{name}"
    lines = [
        f"acl {busy} queue({here}) gt 0" if one.max_queue else f"acl {busy} always_true",
        f"http-request set-var-fmt(txn.held) 'hold: %[str(why:{name}),map({live},-)]' if {{ var(txn.st) -m str hold }} {idle}",
        f"http-request lua.hold {name} {max(1, one.max_queue)} {hold_ms} if {{ var(txn.held) -m found }}",
        f"http-request set-var(txn.st) str(st:{name}),map({live},shed) if {{ var(txn.st) -m str hold }}",
        f"http-request set-var(txn.why) str(shed) if {{ var(txn.st) -m str shed hold }} {idle}",
        f"http-request set-var(txn.q) str(q:{name}),map({live},0),add(0) if {busy}",
        f"http-request set-var(txn.lim) str(lim:{here}),map({live},{one.max_in_flight}),add(0) if {busy}",
    ]
    waiting = f"queue({here}),sub(txn.q) ge 0"
    if one.grpc_port:
        other = backend_of(name, grpc=not grpc)
        lines.append(f"acl {busy} queue({other}) gt 0")
        lines.append(f"http-request set-var(txn.q2) queue({other}) if {busy}")
        waiting = f"queue({here}),add(txn.q2),sub(txn.q) ge 0"
    lines += [
        f"http-request set-var(txn.why) str(full) if {busy} {idle} {{ {waiting} }} {{ srv_conn({here}/engine),sub(txn.lim) ge 0 }}",
        f"use_backend {refusal_of(name, grpc=grpc)} if {{ var(txn.why) -m str shed full }}",
    ]
    return lines


def model(api: str) -> list[str]:
    """The model named by the body, and whether only the gate can find it: ``big`` goes on beyond the
    buffer, ``packed`` is compressed, ``form`` is multipart.
    """
    return [
        "http-request set-var(txn.form) int(1) if METH_POST { req.hdr(content-type) -m beg -i multipart/ }",
        "http-request set-var(txn.packed) int(1) if METH_POST { req.hdr(content-encoding) -m found } !{ req.hdr(content-encoding) -m str -i identity }",
        "acl unpacks req.hdr(content-encoding),lower -m str identity gzip deflate",
        *refuse(
            api,
            415,
            "this Content-Encoding is not supported: send gzip, deflate or none",
            "{ var(txn.packed) -m found } !unpacks",
        ),
        "http-request set-var(txn.model) req.body,json_query('$.model') if METH_POST !{ var(txn.form) -m found } !{ var(txn.packed) -m found }",
        "http-request set-var(txn.big) int(1) if METH_POST { var(txn.packed) -m found }",
        "http-request set-var(txn.big) int(1) if METH_POST !{ req.hdr(content-length) -m found } !{ var(txn.model) -m found }",
        "http-request set-var(txn.len) req.body_len if METH_POST",
        "http-request set-var(txn.big) int(1) if METH_POST { req.body_size,sub(txn.len) gt 0 }",
        # chunked: its size is not known yet, a full buffer tells
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
        f"http-request set-var(txn.fo) str(fo:{name}:*),map({live}) if {mine} !{{ var(txn.model) -m found }} {{ var(txn.big) -m found }} !{{ var(txn.form) -m found }}",
        f"http-request set-var(txn.fo) str(fl:{name}),map({live}) if {mine} METH_GET {{ path -m beg /v1/models }}",
        f"http-request set-var(txn.why) str(failover) if {mine} {found} {{ var(txn.st) -m str away hold shed }}",
        f"http-request set-var(txn.why) str(failover) if {mine} {found} {dead}",
        f"http-request set-header x-arbiter-want %[var(txn.fo)] if {mine} {{ var(txn.why) -m str failover }}",
    ]


def shed_only(one: Behind, only: str = "") -> list[str]:
    """Refuse while it is shed; limit and queue are the inner door's."""
    return [
        f"http-request set-var(txn.why) str(shed) if {{ var(txn.st) -m str shed }} !{{ var(txn.why) -m found }} {only}".rstrip(),
        f"use_backend {refusal_of(one.name)} if {{ var(txn.why) -m str shed }}",
    ]


def guard(line: str, condition: str) -> str:
    """The same rule, for one backend of several."""
    if line.startswith("acl "):
        return line
    if " if " in line:
        line, _, cond = line.rpartition(" if ")
        return f"{line} if {condition} {cond}"
    return f"{line} if {condition}"
