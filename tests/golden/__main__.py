"""``python -m tests.golden``: write the golden files and all that is generated of docs and units anew."""

from arbiterd.report.catalogue import catalog
from tests.golden.reference import CATALOG, DOCS, INCIDENTS, incidents, page
from tests.golden.surfaces import SURFACES, lines
from tests.golden.test_golden import FOLDER

for name in SURFACES:
    (FOLDER / f"{name}.txt").write_text("\n".join(lines(name)) + "\n", encoding="utf-8")
DOCS.write_text(page(), encoding="utf-8")
INCIDENTS.write_text(incidents(), encoding="utf-8")
CATALOG.write_text(catalog(), encoding="utf-8")
