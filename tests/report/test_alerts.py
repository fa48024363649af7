"""The shipped alert rules, by Prometheus's own promtool."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "etc/prometheus/gpu-arbiter.rules.yml"


def promtool(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run it; scripts/setup installs it."""
    return subprocess.run(
        ["promtool", *argv], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def test_the_rules_are_valid_and_fire_when_they_should(tmp_path: Path) -> None:
    """All unhealthy, one unhealthy, out of memory, doors shut: and not before their time."""
    checked = promtool("check", "rules", str(RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    case = tmp_path / "alerts.yml"
    case.write_text(
        (Path(__file__).with_name("alerts.test.yml")).read_text().replace("RULES", str(RULES))
    )
    tested = promtool("test", "rules", str(case))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_metric_in_the_rules_is_documented() -> None:
    """A renamed metric must not silence an alert."""
    named = set(re.findall(r"\bgpu_arbiter_\w+", RULES.read_text()))
    docs = (ROOT / "docs/metrics.md").read_text()
    assert named
    assert all(name.removesuffix("_total") in docs for name in named)
