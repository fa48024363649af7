"""The cards that can be simulated, with their sizes."""

from __future__ import annotations

from dataclasses import dataclass

from arbiterd.quantities import MIB


@dataclass(frozen=True, slots=True)
class Profile:
    """A card: sizes from published `nvidia-smi -q` captures (docs/facts/nvml.md)."""

    name: str
    total_bytes: int
    reserved_bytes: int
    mig: bool = False


PROFILES = {
    "rtx4090-24g": Profile("NVIDIA GeForce RTX 4090", 24564 * MIB, 482 * MIB),
    "a100-40g": Profile("NVIDIA A100-SXM4-40GB", 40960 * MIB, 518 * MIB, mig=True),
    "h100-80g": Profile("NVIDIA H100 80GB HBM3", 81559 * MIB, 480 * MIB, mig=True),
}
# MiB per slice of the cards above.
MIG_SIZES = {
    "1g.5gb": 4864,
    "2g.10gb": 9984,
    "3g.20gb": 20096,
    "4g.20gb": 20096,
    "7g.40gb": 40320,
    "1g.10gb": 9984,
    "2g.20gb": 20096,
    "3g.40gb": 40448,
    "4g.40gb": 40448,
    "7g.80gb": 81152,
}
