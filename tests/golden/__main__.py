"""``python -m tests.golden``: write every golden file anew (each release does; so does a new surface)."""

from tests.golden.surfaces import SURFACES, lines
from tests.golden.test_golden import FOLDER

for name in SURFACES:
    (FOLDER / f"{name}.txt").write_text("\n".join(lines(name)) + "\n", encoding="utf-8")
