"""A TensorFlow SavedModel: PATH/VERSION/variables. TensorFlow Serving loads the highest version."""

from __future__ import annotations

from pathlib import Path

from arbiterd.fit.files.huggingface import NotHere
from arbiterd.fit.files.read import Unreadable, names_in, size_of
from arbiterd.fit.types import ModelFacts


def read_model(name: str, path: Path) -> ModelFacts:
    """The variables' size on disk, and the graph's (frozen constants lie in it).

    Raises:
        NotHere: no version of it is there.
        Unreadable: it may not be read.

    """
    try:
        there = path.is_dir()
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    if not there:
        raise NotHere(f"there is no folder {path}")
    versions = [one for one in names_in(path) if one.isascii() and one.isdigit()]
    if not versions:
        raise NotHere(f"there is no version folder (a number) in {path}")
    version = max(versions, key=int)
    folder = path / version
    names = names_in(folder)
    graph = sum(size_of(folder / n) for n in names if n in ("saved_model.pb", "saved_model.pbtxt"))
    if not graph:
        raise NotHere(f"there is no saved_model.pb in {folder}")
    variables = 0
    if "variables" in names:
        inside = folder / "variables"
        variables = sum(size_of(inside / n) for n in names_in(inside) if ".data-" in n)
    return ModelFacts(name, variables + graph, f"variables and graph of version {version}")
