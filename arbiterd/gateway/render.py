"""HAProxy's configuration, rendered from the layout. Pure text; tests guard its decisive lines.

Limits, states and failover are not in here: they live in the live map and are set by the Runtime
API, so that no change of them ever needs a reload (a reload doubles the limit while old streams
live: docs/facts/gateway.md).
"""

from __future__ import annotations

from arbiterd.gateway import crowds, frontend, guards, key_rules, log_sample, probes, routes, rules
from arbiterd.gateway.layout import LLM_DOOR, LLM_KINDS, Behind, Door, Layout
from arbiterd.gateway.llm_door import llm_door
from arbiterd.gateway.paths import GROUP, Paths
from arbiterd.model import door_log


def render(layout: Layout, paths: Paths, *, systemd: bool) -> str:
    """The whole file."""
    parts = [_global(layout, paths, systemd=systemd), _defaults(layout, paths), crowds.tables()]
    for door in layout.doors:
        if door.name == LLM_DOOR:
            parts.append(llm_door(layout, door, paths))
        elif door.grpc:
            parts.append(_grpc_door(layout, door, layout.behind(door.backend), paths))
        else:
            parts.append(_door(layout, door, layout.behind(door.backend), paths))
    for one in layout.backends:
        if one.inner:
            parts.append(_inner(layout, one, paths, systemd=systemd))
        sent = key_rules.towards(layout.keys, one.name, paths)
        parts += [*_backends(one, paths, sent), *routes.aside_backends(one, sent)]
        parts.append(rules.refusal(one, paths))
        if one.grpc_port:
            parts.append(rules.refusal(one, paths, grpc=True))
    parts.append(_gate(layout, paths))
    parts.append(probes.render(layout, paths, systemd=systemd))
    return "\n".join(parts)


def _global(layout: Layout, paths: Paths, *, systemd: bool) -> str:
    group = f" group {GROUP}" if systemd else ""
    return f"""\
# Rendered by gpu-arbiter; edits are overwritten.
global
    log {paths.log} len 4096 format raw local0
    stats socket {paths.runtime} mode 660{group} level admin expose-fd listeners
    stats timeout 30s
    maxconn {crowds.whole(layout)}
    # in a container LimitNOFILE may be less than the unit says: fewer connections, not none
    no strict-limits
    # where fewer files may be open than all doors could use (a hard limit below LimitNOFILE=): serve fewer
    no strict-limits
    nbthread 1
    ssl-default-bind-options ssl-min-ver TLSv1.2
    # keys and certificate: {layout.keys.digest or "none"}
    tune.bufsize {rules.BUFFER_BYTES}
    tune.lua.session-timeout 0
    lua-load {paths.lua}
"""


def _defaults(layout: Layout, paths: Paths) -> str:
    longest = max((one.request_timeout_s for one in layout.backends), default=900.0)
    return f"""\
defaults
    mode http
    log global
    option dontlognull
    log-format '{door_log.FORMAT}'
    option http-no-delay
    option abortonclose
    option contstats
    option redispatch 1
    retries 2
    retry-on conn-failure
    timeout connect {rules.CONNECT_MS}ms
    # a client that waits for its answer is not timed by it (docs/facts/gateway.md)
    timeout client {crowds.STALL_S}s
    timeout server {rules.duration_ms(longest)}
    timeout http-request {crowds.HEADER_S}s
    timeout http-keep-alive 60s
    timeout queue 10s
    # every frontend: {paths.live}
"""


def _door(layout: Layout, door: Door, one: Behind, paths: Paths) -> str:
    """The public door of one backend."""
    lines = [
        *rules.about(one.name, paths),
        *guards.page_rules(one.pages),
        *routes.allowed(one),
        *routes.health(one, paths),
        *key_rules.at_door(layout.keys, [one.name], one.routes.api, paths, "!METH_OPTIONS"),
        *routes.forbid(one, door.name),
        *routes.options(one.routes),
        *routes.aside(one, paths),
    ]
    if one.inner:
        lines.append(f"http-request set-header x-arbiter-door {one.name}")
        lines += rules.model(one.routes.api)
    if one.standin:
        lines += rules.substitute(one, paths)
        lines.append("use_backend gate if { var(txn.why) -m str failover }")
    if one.gated:
        # The gate's own way in (the inner door) counts, queues and refuses; only shed is told here.
        lines.append(f"acl by-gate path -m str {' '.join((*one.routes.loads, *one.routes.listed))}")
        lines += [*rules.shed_only(one, "by-gate"), *routes.by_gate(one)]
    lines += rules.admit(one, paths)
    if one.inner and not one.gated:
        lines += routes.by_gate(one)
    head = frontend.opening(
        layout, f"door-{door.name}", frontend.bind(layout, door, paths), one.routes.api, paths,
        llm=one.inner, lists=one.kind in LLM_KINDS, named=one.gated,
    )  # fmt: skip
    return frontend.text(head, lines, rules.backend_of(one.name))


def _inner(layout: Layout, one: Behind, paths: Paths, *, systemd: bool) -> str:
    """The gate's way to an LLM: here its limit, queue and state hold."""
    group = f" group {GROUP}" if systemd else ""
    bind = f"unix@{paths.inner(one.name)} mode 660{group}"
    head = frontend.opening(layout, f"in-{one.name}", bind, one.routes.api, paths, llm=True)
    lines = [*probes.pass_by(one), *rules.about(one.name, paths), *rules.admit(one, paths)]
    return frontend.text(head, lines, rules.backend_of(one.name))


def _grpc_door(layout: Layout, door: Door, one: Behind, paths: Paths) -> str:
    """TensorFlow Serving's gRPC: every refusal is UNAVAILABLE."""
    paths_ok = " ".join(one.routes.grpc)
    denied = (
        "http-request return status 200 hdr grpc-status 7 "
        f'hdr grpc-message "%[path,url_enc] is not let through" file {paths.files / "empty"} '
        f"unless {{ path -m beg {paths_ok} }}"
    )
    # a `return` with an empty body carries no content type of its own, and Go's client wants one
    typed = "http-after-response set-header content-type application/grpc if { status 200 }"
    asked = key_rules.at_grpc_door(layout.keys, paths)
    lines = [
        *rules.about(one.name, paths),
        *asked,
        denied,
        *rules.admit(one, paths, grpc=True),
        typed,
    ]
    bind = frontend.bind(layout, door, paths)
    head = frontend.opening(layout, f"door-{door.name}", bind, "plain", paths, llm=False, grpc=True)
    return frontend.text(head, lines, rules.backend_of(one.name, grpc=True))


def _backends(one: Behind, paths: Paths, sent: list[str]) -> list[str]:
    """The engine itself: one server, one counter."""
    # downinter: an engine that has just become ready would be refused for up to half a second more
    check = "check inter 500ms downinter 100ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down"
    lines = [
        f"backend {rules.backend_of(one.name)}",
        f"    timeout server {rules.duration_ms(one.request_timeout_s)}",
        f"    timeout queue {rules.duration_ms(one.queue_timeout_s)}",
        # also the pause before the retry; where nobody stands in there is none: a refused connection is
        # told at once, a full backlog of the engine may take a second SYN
        f"    timeout connect {rules.CONNECT_MS if one.standin else rules.PATIENT_MS}ms",
        "    http-request del-header x-arbiter- -m beg" if not one.standin else "",
        "    retries 0" if not one.standin else "",
        *(
            f"    {line}"
            for line in (
                *sent,
                *routes.own_host(one),
                *routes.served_by(one.name),
                *log_sample.sampled(one.name),
            )
        ),
        f"    server engine 127.0.0.1:{one.port} maxconn {one.max_in_flight} {check} {rules.KEPT}",
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
                    f"backend {rules.backend_of(one.name, grpc=True)}",
                    f"    timeout server {rules.duration_ms(one.request_timeout_s)}",
                    f"    timeout queue {rules.duration_ms(one.queue_timeout_s)}",
                    # here it times the engine's first SETTINGS, too: a busy one is slow to greet
                    f"    timeout connect {rules.PATIENT_MS}ms",
                    "    retries 0",
                    *(f"    {line}" for line in (*sent, *log_sample.sampled(f"{one.name}-grpc"))),
                    f"    server engine 127.0.0.1:{one.grpc_port} proto h2 maxconn {half} {check}\n",
                )
            )
        )
    return out


def _gate(layout: Layout, paths: Paths) -> str:
    if not any(one.inner for one in layout.backends):
        return ""
    # what aiohttp's parser refuses it refuses in plain text
    own = [
        "http-request set-var(txn.v1) int(1) if { path_beg /v1/ }",
        *rules.restate(400, "this is no HTTP request that can be handed on"),
    ]
    lines = "".join(f"    {line}\n" for line in own)
    return f"""\
backend gate
    http-request set-header x-arbiter-src %[src]
{lines.rstrip()}
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
