"""The shipped Grafana dashboard: every expression is PromQL over metrics that are served."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from arbiterd.report.metrics import exposition
from arbiterd.report.metrics.counters import Counts
from tests.core.world import World, settings
from tests.support import PATIENCE_S
from tests.web.site import published

PATH = Path(__file__).resolve().parents[2] / "etc/grafana/gpu-arbiter.json"
BOARD: dict[str, Any] = json.loads(PATH.read_text())
PANELS = [one for one in BOARD["panels"] if one["type"] != "row"]


def _expressions() -> list[str]:
    return [target["expr"] for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def served() -> set[str]:
    """Names of samples that a scrape may have, as the exposition declares them."""
    text = exposition.render(published(World(settings()).up()), Counts())
    names = set()
    for _, _, name, kind in (line.split() for line in text.splitlines() if line[:6] == "# TYPE"):
        names.add(name)
        if kind == "histogram":
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return names


def test_every_metric_of_the_dashboard_is_served(served: set[str]) -> None:
    """A renamed metric must not leave an empty panel; variables included."""
    queries = [
        one["query"]["query"] for one in BOARD["templating"]["list"] if one["type"] == "query"
    ]
    named = set(re.findall(r"\bgpu_arbiter_\w+", "\n".join([*_expressions(), *queries])))
    assert named - served == set()
    assert len(named) > 25


def test_every_expression_is_valid_promql(tmp_path: Path) -> None:
    """Checked as recording rules by promtool; Grafana's variables stand for a host and a card."""
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "1m", expr)}
        for number, expr in enumerate(_expressions())
    ]
    path = tmp_path / "rules.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "board", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_pressure_is_one_number_for_each_band(tmp_path: Path) -> None:
    """0 calm, 1 tight, 2 critical, 3 unknown: the panel's mapping relies on it."""
    panel = next(one for one in PANELS if one["title"] == "Pressure")
    expr = panel["targets"][0]["expr"].replace("$instance", "h.*")
    tests = []
    for number, band in enumerate(("calm", "tight", "critical", "unknown")):
        series = [
            {
                "series": f'gpu_arbiter_gpu_pressure{{instance="h1", gpu="GPU-0", index="0", pressure="{one}"}}',
                "values": str(int(one == band)),
            }
            for one in ("calm", "tight", "critical", "unknown")
        ]
        samples = [{"labels": '{instance="h1", index="0"}', "value": number}]
        case = {"expr": expr, "eval_time": "0m", "exp_samples": samples}
        tests.append({"interval": "1m", "input_series": series, "promql_expr_test": [case]})
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"rule_files": [], "tests": tests}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_say_what_they_show() -> None:
    """Unique ids, a place of their own within 24 columns, a unit, a legend."""
    assert len({one["id"] for one in BOARD["panels"]}) == len(BOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        mine = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not mine & cells, panel["title"]
        cells |= mine
    for panel in PANELS:
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["legendFormat"] for target in panel["targets"])
