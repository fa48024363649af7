"""The unified door: one port for every LLM, the model named by the body picks the backend. Pure text."""

from __future__ import annotations

from arbiterd.gateway import frontend, key_rules, routes, rules
from arbiterd.gateway.guards import ONE_MODEL
from arbiterd.gateway.layout import Behind, Door, Layout
from arbiterd.gateway.paths import Paths
from arbiterd.model.settings import Kind

_API = "openai_below_v1"
_LISTS = "{ path -m str /v1/models /api/tags /api/ps }"
_READ = ("/", "/health", "/v1/models", "/api/tags", "/api/ps", "/api/version")


def llm_door(layout: Layout, door: Door, paths: Paths) -> str:
    """The whole frontend."""
    llms = [one for one in layout.backends if one.inner]
    uses = ["use_backend gate if { var(txn.sniff) -m found }"]
    lines = ["http-request set-header x-arbiter-door llm", *_let_through(llms), *_own(llms, paths)]
    lines += key_rules.at_door(layout.keys, [one.name for one in llms], _API, paths)
    lines += [*rules.model(_API), *_pick(layout, paths, spelt=any(one.gated for one in llms))]
    for one in llms:
        mine = f"{{ var(txn.b) -m str {one.name} }}"
        if one.kind is not Kind.OLLAMA:
            text = f"%[path,json(utf8s)] is a route of Ollama; {one.name} has the model: use /v1"
            lines += rules.refuse(_API, 404, text, f"{mine} {{ path_beg /api/ }}")
        if one.standin:
            lines += rules.substitute(one, paths)
        guarded = rules.admit(one, paths) if not one.gated else rules.shed_only(one)
        lines += [rules.guard(line, mine) for line in guarded]
        through = mine
        if one.gated:
            through = f"{mine} {{ path -m str {' '.join(one.routes.loads)} }}"
            lines.append(
                f"http-request set-header x-arbiter-want {one.name} if {through} !{{ var(txn.why) -m str failover }}"
            )
            lines.append(f"use_backend gate if {through} !{{ var(txn.why) -m str failover shed }}")
    lines.append(
        "http-request set-header x-arbiter-home %[var(txn.b)] if { var(txn.why) -m str failover }"
    )
    uses.append("use_backend gate if { var(txn.why) -m str failover }")
    uses += [
        f"use_backend {rules.backend_of(one.name)} if {{ var(txn.b) -m str {one.name} }}"
        for one in llms
    ]
    head = frontend.opening(
        layout, f"door-{door.name}", frontend.bind(layout, door, paths), _API, paths,
        llm=True, lists=True, named=True,
    )  # fmt: skip
    return frontend.text(head, [*lines, *uses], "")


def _let_through(llms: list[Behind]) -> list[str]:
    """Inference routes of any of them, and what is answered for all of them."""
    posts = {p for one in llms for p in (*one.routes.exact, *one.routes.loads)}
    known = f"{{ path -m str {' '.join(_READ)} }}"
    inference = sorted(posts - routes.READ)
    return [
        f"acl inference path -m str {' '.join(inference)}",
        *rules.refuse(
            _API, 403, "%[path,json(utf8s)] is not an inference route",
            f"!inference !{known} !{ONE_MODEL}",
        ),
        'http-request return status 204 hdr Allow "POST, OPTIONS" if METH_OPTIONS inference',
        'http-request return status 204 hdr Allow "GET, HEAD, OPTIONS" if METH_OPTIONS !{ path /health }',
    ]  # fmt: skip


def _own(llms: list[Behind], paths: Paths) -> list[str]:
    """What the door answers itself: health, Ollama's version and its greeting."""
    ollamas = [one for one in llms if one.gated]
    lines = []
    for one in llms:
        lines.append(
            f"http-request return status 200 {rules.JSON} string '{{\"accepting\":true}}' if {{ path /health }} {rules.well(one, paths)}"
        )
    lines.append(
        f'http-request return status 503 {rules.JSON} hdr Retry-After 5 string \'{{"error":"no LLM takes work"}}\' if {{ path /health }}'
    )
    greeting = "Ollama is running" if ollamas else "gpu-arbiter is running"
    lines.append(
        f"http-request return status 200 content-type text/plain string '{greeting}' if {{ path / }}"
    )
    for one in ollamas:
        said = f'{{"version":"%[str(ver:{one.name}),map({paths.live},unknown)]"}}'
        lines.append(
            f"http-request return status 200 {rules.JSON} lf-string '{said}' if {{ path /api/version }} {rules.well(one, paths)}"
        )
    if ollamas:
        again = f'hdr Retry-After "%[str(ra:{ollamas[0].name}),map({paths.live},5)]" '
        text = f"%[str(why:{ollamas[0].name}),map({paths.live},stopped)]"
        return [*lines, *rules.refuse(_API, 503, text, "{ path /api/version }", again)]
    return [
        *lines,
        *rules.refuse(_API, 404, "no Ollama in this mode", "{ path /api/version /api/tags /api/ps }"),
    ]  # fmt: skip


def _freest(layout: Layout, paths: Paths) -> list[str]:
    """Of several backends that serve the model, the one with the most free slots; where none takes
    work, the first of the file keeps it. Each has a limit and a queue of its own.
    """
    if not layout.sharing:
        return []
    live = paths.live
    lines = [
        f"http-request set-var(txn.many) str(mn:),concat(,txn.model),map({live}) if {{ var(txn.model) -m found }}",
        "http-request set-var(txn.best) int(-1000000) if { var(txn.many) -m found }",
    ]
    better = "{ var(txn.free) -m found } { var(txn.free),sub(txn.best) gt 0 }"
    for name in layout.sharing:
        one = layout.behind(name)
        here = rules.backend_of(name)
        can = (
            f"{{ var(txn.many) -m sub ,{name}, }} {{ str(st:{name}),map({live},shed) -m str up }} "
            f"{{ srv_is_up({here}/engine) }}"
        )
        lines += [
            "http-request unset-var(txn.free) if { var(txn.many) -m found }",
            f"http-request set-var(txn.taken) srv_conn({here}/engine) if {can}",
            f"http-request set-var(txn.taken) queue({here}),add(txn.taken) if {can}",
            f"http-request set-var(txn.free) str(lim:{here}),map({live},{one.max_in_flight}),sub(txn.taken) if {can}",
            f"http-request set-var(txn.b) str({name}) if {better}",
            f"http-request set-var(txn.best) var(txn.free) if {better}",
        ]
    return lines


def _pick(layout: Layout, paths: Paths, *, spelt: bool) -> list[str]:
    """txn.b: the backend; txn.sniff: the gate finds it out."""
    live, model = paths.live, "{ var(txn.model) -m found }"
    sniff, backend = "{ var(txn.sniff) -m found }", "{ var(txn.b) -m found }"
    lines = [
        f"http-request set-var(txn.b) str(m:),concat(,txn.model),map({live}) if {model}",
        *_freest(layout, paths),
        f"http-request set-var(txn.b) str(m:*),map({live}) if {model} !{backend}",
        f"http-request set-var(txn.sniff) int(1) if !{model} {{ var(txn.big) -m found }}",
        f"http-request set-var(txn.sniff) int(1) if !{model} {{ var(txn.form) -m found }}",
        f"http-request set-var(txn.sniff) int(1) if {_LISTS}",
        f"http-request set-var(txn.sniff) int(1) if {ONE_MODEL}",
        *rules.refuse(_API, 400, "the body names no model", f"!{model} !{sniff}"),
        # another spelling of a name, perhaps: the gate compares as Ollama does
        f"http-request set-var(txn.sniff) int(1) if !{backend}" if spelt else "",
        *rules.refuse(
            _API, 404, "no backend has the model %[var(txn.model),json(utf8s)]", f"!{backend} !{sniff}"
        ),
        f"http-request set-var(txn.st) str(st:),concat(,txn.b),map({live},shed) if {backend}",
    ]  # fmt: skip
    return [line for line in lines if line]
