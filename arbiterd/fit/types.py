"""What a model's files tell of it, and what follows for a cap. Read by ``arbiterd.fit.files``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class KvLayers:
    """Layers that cache alike.

    ``values``: cached per token and layer, keys and values of all KV heads together (for latent
    attention: the latent vector). ``heads``: KV heads, over which tensor parallel ranks split them;
    0: every rank holds the whole. ``window``: tokens a layer looks back, 0: the whole context.
    """

    count: int
    values: int
    heads: int = 0
    window: int = 0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model as its files describe it.

    ``weight_bytes``: as the engine will hold them, ``weights_text`` says where they come from.
    ``quantised``: the files are. ``at_most``: why the weights may turn out smaller than that, "" when
    they cannot. ``layers`` empty: the shape is unknown. ``stateful_layers``: layers with a state of
    fixed size per sequence instead of a cache (Mamba, linear attention). ``context``: tokens the model was
    made for, 0 unknown. ``embeds``: it makes vectors only. ``vocab``, ``hidden``, ``intermediate``: 0
    unknown. ``kv_value_bytes``: of one cached value.
    """

    name: str
    weight_bytes: int
    weights_text: str
    at_most: str = ""
    quantised: bool = False
    layers: tuple[KvLayers, ...] = ()
    stateful_layers: int = 0
    context: int = 0
    vocab: int = 0
    hidden: int = 0
    intermediate: int = 0
    dtype_bytes: int = 2
    kv_value_bytes: float = 2.0
    embeds: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NoFacts:
    """Nothing can be said of this model: why, and the command that would fetch it ("" for none)."""

    name: str
    reason: str
    prefetch: str = ""


class Verdict(StrEnum):
    """Whether a model fits its cap."""

    FITS = "fits"
    DOES_NOT_FIT = "does not fit"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Term:
    """One summand of a prediction, bytes; ``text`` is how it comes about."""

    name: str
    size_bytes: int
    text: str


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether a model fits, with the arithmetic.

    ``predicted_bytes`` is the sum of ``terms``; ``room_bytes`` what it must fit into
    (``room_text`` names it). ``certain``: the weights alone exceed the cap. ``tight``: only the
    estimated terms decide. ``right``: what would
    be right when it does not fit, or the command that would tell more.
    """

    model: str
    verdict: Verdict
    reason: str
    right: str = ""
    terms: tuple[Term, ...] = ()
    predicted_bytes: int | None = None
    room_bytes: int | None = None
    room_text: str = ""
    certain: bool = False
    tight: bool = False
    notes: tuple[str, ...] = ()
