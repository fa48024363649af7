"""``python -m tests.golden``: write every golden file and the keys in docs/configuration.md anew."""

from tests.golden.reference import DOCS, page
from tests.golden.surfaces import SURFACES, lines
from tests.golden.test_golden import FOLDER

for name in SURFACES:
    (FOLDER / f"{name}.txt").write_text("\n".join(lines(name)) + "\n", encoding="utf-8")
DOCS.write_text(page(), encoding="utf-8")
