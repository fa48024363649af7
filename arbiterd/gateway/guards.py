"""What a door asks of every request before it looks at the route: path, name, origin. Pure text."""

from __future__ import annotations

from arbiterd.gateway import crowds
from arbiterd.gateway.hosts import Names, host_pattern, origin_pattern
from arbiterd.gateway.rules import refuse

# server/routes.go, corsConfig.AllowHeaders
_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,"
    "X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,"
    "X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,"
    "X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
ONE_MODEL = "{ path -m beg /v1/models/ }"
_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"


def straight_paths(api: str, *, lists: bool) -> list[str]:
    """403 for a path that an engine may read otherwise than the door's list does. ``lists``: the gate
    answers /v1/models/NAME, and clients write the slash of a name as %2F.
    """
    text = "invalid path: .., //, %%2e, %%2f and backslashes are refused"
    return [
        "acl crooked path -m sub -i .. // %2e %5c \\\\",
        f"acl {'slashed' if lists else 'crooked'} path -m sub -i %2f",
        *refuse(api, 403, text, "crooked"),
        *(refuse(api, 403, text, f"slashed !{ONE_MODEL}") if lists else ()),
    ]


def short_lines(api: str) -> list[str]:
    """400 for a header line, or a URL, that is longer than servers take; HAProxy's buffer holds eight."""
    most = crowds.LINE_MOST
    return [
        *refuse(
            api, 400, f"a header line is longer than {most} bytes",
            f"{{ req.hdrs -m len gt {most} }} {{ req.hdrs -m reg '[^\\r\\n]{{{most + 1}}}' }}",
        ),
        *refuse(api, 400, f"the URL is longer than {most} bytes", f"{{ url -m len gt {most} }}"),
    ]  # fmt: skip


def host_rules(names: Names, api: str) -> list[str]:
    """403 for a name that is not ours: always on loopback, else when a browser asks."""
    lines = [
        "http-request set-var(txn.host) req.fhdr(host),lower",
        # HTTP/1.0 may name the host in the request target alone
        "http-request set-var(txn.host) url,lower,field(3,/) if !{ var(txn.host) -m found } { url -m beg -i http:// https:// }",
        "acl named var(txn.host) -m found",
        f"acl known-host var(txn.host) -m reg '{host_pattern(names)}'",
    ]
    shown = "%[var(txn.host),json(utf8s)]"
    text = (
        f'{shown} is not a name of this host; to allow it, add: [gateway] hosts = [\\"{shown}\\"]'
    )
    if names.closed:
        return [*lines, *refuse(api, 403, text, "named !known-host")]
    lines += [
        "acl browser req.hdr(origin) -m found",
        "acl browser req.hdr_names -m sub -i sec-fetch-",
        *refuse(api, 403, text, "named !known-host browser"),
        # told once, by way of the log
        "http-request set-var(txn.odd) var(txn.host) if named !known-host",
    ]
    return lines


def page_rules(pages: tuple[str, ...]) -> list[str]:
    """What vLLM answers pages of these origins (starlette's CORSMiddleware), also while a substitute or
    the door itself answers for it: without it a page sees no error and no Retry-After, only a failure.
    """
    if not pages:
        return []
    allowed, page = "{ var(txn.cors) -m found }", "{ var(txn.o) -m found }"
    listed = f"{{ var(txn.o) -m str {' '.join(pages)} }}"
    cors = f"str(*) if {page}" if "*" in pages else f"var(txn.o) if {listed}"
    return [
        "http-request set-var(txn.o) req.fhdr(origin) if { req.fhdr(origin) -m len gt 0 }",
        f"http-request set-var(txn.cors) {cors}",
        "http-after-response set-header Access-Control-Allow-Origin %[var(txn.cors)] "
        f"if {allowed} !{{ res.hdr(access-control-allow-origin) -m found }}",
        f"http-after-response add-header Vary Origin if {page} !{{ res.hdr(vary) -m sub -i origin }}",
        "http-request return status 200 content-type text/plain string OK "
        f"hdr Access-Control-Allow-Methods {_METHODS} hdr Access-Control-Max-Age 600 "
        'hdr Access-Control-Allow-Headers "%[req.fhdr(access-control-request-headers)]" '
        f"if METH_OPTIONS {allowed} {{ req.hdr(access-control-request-method) -m found }}",
    ]


def origin_rules(names: Names, api: str) -> list[str]:
    """What the engine would decide and answer (gin-contrib/cors), and no Origin for it any more."""
    shown = "%[var(txn.o),json(utf8s)]"
    text = f'origin {shown} is not allowed; to allow it, add: [gateway] cors = [\\"{shown}\\"]'
    cors = "str(*)" if "*" in names.origins else "var(txn.o)"
    hidden = "{ var(txn.cors) -m found }"
    preflight = (
        "http-request return status 204 "
        f"hdr Access-Control-Allow-Methods {_METHODS} hdr Access-Control-Allow-Headers {_HEADERS} "
        "hdr Access-Control-Max-Age 43200 "
        'hdr Vary "Access-Control-Request-Method, Access-Control-Request-Headers" '
        f"if METH_OPTIONS {hidden}"
    )
    return [
        # an empty one is none, as for the engine
        "http-request set-var(txn.o) req.fhdr(origin),lower if { req.fhdr(origin) -m len gt 0 }",
        "acl page var(txn.o) -m found",
        "acl web var(txn.o) -m beg http:// https://",
        "acl same-origin var(txn.o),field(3,/),strcmp(txn.host) eq 0",
        "acl same-host var(txn.o),field(3,/),host_only,strcmp(txn.only) eq 0",
        f"acl known-origin var(txn.o) -m reg '{origin_pattern(names)}'",
        "http-request set-var(txn.only) var(txn.host),host_only if page",
        *refuse(api, 403, text, "page !known-origin !web"),
        *refuse(api, 403, text, "page !known-origin !same-host"),
        f"http-request set-var(txn.cors) {cors} if page !same-origin",
        f"http-request set-var(txn.cors) {cors} if page !web",
        "http-request del-header origin if page",
        f"http-after-response set-header Access-Control-Allow-Origin %[var(txn.cors)] if {hidden}",
        f"http-after-response add-header Vary Origin if {hidden} !{{ var(txn.cors) -m str * }}",
        preflight,
    ]
