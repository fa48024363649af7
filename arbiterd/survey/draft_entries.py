"""One line of [backends] per engine that was found: which program, which user, which models. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import tomlkit

from arbiterd.engines.vllm_command import model_of
from arbiterd.model.settings import Kind
from arbiterd.quantities import format_size
from arbiterd.survey.carried import Carried, from_command, from_unit
from arbiterd.survey.facts import (
    EngineName,
    Image,
    OllamaModel,
    OllamaStore,
    Survey,
    UnitFacts,
    Venv,
    engine_of_unit,
)
from arbiterd.survey.secrets import shown

DEFAULT_MODEL = "Qwen/Qwen2.5-3B-Instruct"
MAX_MODELS = 16  # an allow-list that can still be read in one line
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EMBEDS = re.compile(r"embed|minilm|bge-", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entry:
    """``body``: what stands between the braces. ``why_not``: written as a comment, and why."""

    body: str
    notes: tuple[str, ...] = ()
    why_not: str = ""


def entries(survey: Survey, *, images_run: bool) -> dict[EngineName, Entry]:
    """What was found; an engine of which nothing was found is missing."""
    found: dict[EngineName, Entry | None] = {
        "tensorflow": _tensorflow(survey, images_run=images_run),
        "vllm": _vllm(survey, images_run=images_run),
        "ollama": _ollama(survey, images_run=images_run),
    }
    return {name: entry for name, entry in found.items() if entry is not None}


# -- TensorFlow Serving ------------------------------------------------------------------------
def _tensorflow(survey: Survey, *, images_run: bool) -> Entry | None:
    unit = survey.unit("tensorflow")
    if unit is not None:
        return _of_unit(survey, unit, Kind.TENSORFLOW)
    program = survey.program("tensorflow")
    image = _image(survey, "tensorflow")
    if not program and image is None:
        return None
    if program:
        start, why_not = f"command = {words([program])}", ""
    else:
        start, why_not = _image_start(image, images_run=images_run)
    chosen: dict[str, str] = {}
    for model in survey.saved_models:
        if _NAME.fullmatch(model.name) and model.path.isprintable() and len(chosen) < MAX_MODELS:
            chosen.setdefault(model.name, model.path)
    models = ", ".join(f"{key(name)} = {string(path)}" for name, path in chosen.items())
    if not chosen:
        models = 'NAME = "/srv/models/NAME"'
        why_not = why_not or "no model found: write a folder with numbered versions in it"
    return Entry(f"{start}, models = {{ {models} }}", why_not=why_not)


# -- vLLM --------------------------------------------------------------------------------------
def _vllm(survey: Survey, *, images_run: bool) -> Entry | None:
    """A unit that runs it, else a command line in use, else an environment and a model in a cache."""
    unit = survey.unit("vllm")
    if unit is not None:
        return _of_unit(survey, unit, Kind.VLLM)
    venv = _best_venv(survey)
    image = _image(survey, "vllm")
    program = venv.program if venv is not None else survey.program("vllm")
    runs = sorted(survey.vllm_runs, key=lambda one: not _readable(one.argv))
    run = runs[0] if runs else None  # one that cannot be read is a comment, never a guessed model
    if program:
        if run is not None:
            said = from_command((program, *run.argv[1:]), Kind.VLLM)
            notes = [f"as {run.source} runs it", *_not_carried(said)]
        else:
            model, note = _model(survey)
            said = from_command((program, "serve", model), Kind.VLLM)
            notes = [note]
        body = ", ".join((f"command = {words(said.command)}", *_keys(said.keys)))
        if venv is not None:
            notes.append(f"version {venv.version} in {venv.folder}")
            if not venv.open and venv.owner not in ("root", ""):
                body += f", user = {string(venv.owner)}"
                notes.append(f"it lies where only {venv.owner} may go, so it runs as {venv.owner}")
        return Entry(body, tuple(notes), said.why_not)
    if image is None:
        return None
    start, why_not = _image_start(image, images_run=images_run)
    model, note = _model(survey)
    return Entry(f"{start}, command = {words(['--model', model])}", (note,), why_not)


def _readable(argv: Sequence[str]) -> bool:
    model = model_of(argv)
    return bool(model) and model[0] != "-" and all(word.isprintable() for word in argv)


def _best_venv(survey: Survey) -> Venv | None:
    """The one in use; else one that every user may run, of the highest version."""
    used = {run.argv[0] for run in survey.vllm_runs}
    venvs = [one for one in survey.venvs if one.program.isprintable()]
    return max(venvs, key=lambda v: (v.program in used, v.open, _version(v.version)), default=None)


def _model(survey: Survey) -> tuple[str, str]:
    """(model, where it comes from): a cache, else an example that says so."""
    for one in survey.cached:
        if one.servable and one.name.isprintable() and one.name[0] != "-":
            return one.name, f"the model is in {one.owner}'s Hugging Face cache"
    return DEFAULT_MODEL, "no model found in a cache: write the one you want"


# -- units ---------------------------------------------------------------------------------------
def _of_unit(survey: Survey, unit: UnitFacts, kind: Kind, *more: str) -> Entry:
    """The entry that a foreign unit comes to; all that has no place in it is a comment."""
    said = from_unit(unit, kind)
    notes = [f"from {unit.name}", *more, *_not_carried(said)]
    notes += [
        f"{other.name} runs this engine, too, and is not carried over: {' '.join(shown(other.command))}"
        for other in survey.units
        if other.name != unit.name and engine_of_unit(other) == engine_of_unit(unit)
    ]
    command = shown(said.command) if said.why_not else said.command  # a comment needs no secret
    body = ", ".join((f"command = {words(command)}", *_keys(said.keys)))
    why_not = f"{unit.name} cannot be carried over: {said.why_not}" if said.why_not else ""
    return Entry(body, shown(notes), *shown([why_not]))


def _not_carried(said: Carried) -> list[str]:
    return [f"not carried over: {one}" for one in said.left]


def _keys(keys: Mapping[str, object]) -> list[str]:
    """Keys of an entry as TOML."""
    return [f"{name} = {_value(value)}" for name, value in keys.items()]


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{key(str(name))} = {_value(one)}" for name, one in value.items())
        return f"{{ {pairs} }}"
    return str(value) if isinstance(value, int) else string(str(value))


# -- Ollama ------------------------------------------------------------------------------------
def _ollama(survey: Survey, *, images_run: bool) -> Entry | None:
    unit = survey.unit("ollama")
    image = _image(survey, "ollama")
    if unit is not None and unit.command:
        note = f"{unit.name} runs it as {unit.user or 'root'} now; `arbiterctl takeover ollama` disables it"
        return _of_unit(survey, unit, Kind.OLLAMA, note)
    program = survey.program("ollama")
    if program:
        body = f"command = {words([program, 'serve'])}"
        store = _best_store(survey)
        notes = []
        if store is not None and store.owner not in ("", "gpu-engines"):
            body += f", env = {{ OLLAMA_MODELS = {string(store.folder)} }}"
            if store.owner != "root":
                body += f", user = {string(store.owner)}"
            notes.append(f"its models belong to {store.owner}")
        return Entry(body, tuple(notes))
    if image is None:
        return None
    start, why_not = _image_start(image, images_run=images_run)
    return Entry(start, why_not=why_not)


def with_models(survey: Survey, entry: Entry, cap_bytes: int | None) -> Entry:
    """The allow-list: what fits the cap, newest first (the first is kept warm), embedders last."""
    store = _best_store(survey)
    models = [one for one in store.models if one.name.isprintable()] if store is not None else []
    fits = [one for one in models if cap_bytes is None or one.size_bytes <= cap_bytes]
    fits.sort(key=lambda one: (bool(_EMBEDS.search(one.name)), -one.pulled_at))
    notes = list(entry.notes)
    large = [one for one in models if one not in fits]
    if large:
        notes.append(f"larger than its cap, so left out: {_sizes(large)}")
    if not fits:
        notes.append("no model found: any may load that fits; models = [...] names the only ones")
        return replace(entry, notes=tuple(notes))
    if len(fits) > MAX_MODELS:
        notes.append(f"{len(fits) - MAX_MODELS} older models left out")
    names = words([one.name for one in fits[:MAX_MODELS]])
    notes.append("only these may load; the first is kept warm")
    return Entry(f"{entry.body}, models = {names}", tuple(notes), entry.why_not)


def _best_store(survey: Survey) -> OllamaStore | None:
    stores = [one for one in survey.stores if one.folder.isprintable()]
    return next((one for one in stores if one.models), stores[0] if stores else None)


def _sizes(models: Iterable[OllamaModel]) -> str:
    rows = [f"{one.name} ({format_size(one.size_bytes)})" for one in models]
    return ", ".join(rows[:4]) + (" ..." if len(rows) > 4 else "")


# -- shared ------------------------------------------------------------------------------------
def _image(survey: Survey, engine: EngineName) -> Image | None:
    """The GPU build before the CPU build, named by a tag."""
    images = [one for one in survey.images if one.engine == engine and one.name.isprintable()]
    return min(images, key=lambda one: "gpu" not in one.name, default=None)


def _image_start(image: Image | None, *, images_run: bool) -> tuple[str, str]:
    if image is None:
        return "", "no program found"
    start = f"image = {string(image.name)}, container = {string(image.client)}"
    why = (
        ""
        if images_run
        else f"only its image is here ({image.client}), which this version cannot run"
    )
    return start, why


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def string(text: str) -> str:
    """A TOML string."""
    return tomlkit.string(text).as_string()


def key(text: str) -> str:
    """A TOML key, quoted where it must be."""
    return tomlkit.key(text).as_string()


def words(given: Sequence[str]) -> str:
    """A TOML list of strings."""
    return "[" + ", ".join(string(one) for one in given) + "]"
