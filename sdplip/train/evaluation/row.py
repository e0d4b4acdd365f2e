"""The result of measuring one model in one norm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ...verify import Certificate

LOCAL = ("certified", "local", "attacked")
"""The entries of `Row.local`, from the least to the largest."""
SHORTER = "scaled down"
"""How a remark that a run was shortened begins."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison: a model in one norm, all constants per raw pixel.

    Accuracies are shares of the same `images` test images; `certified` and `attacked` belong to
    `radii`. `promised` is the bound by construction, `verified` the SDP (ℓ₂) or linear-programming
    (ℓ∞) bound, `product` the one by products of norms, `sampled` a lower bound; None where there is
    none, and `note` says why.
    `slack` is the part of the largest logit taken off each margin, `residual` the largest
    equilibrium residual met, `scale` what the model divides its input by.
    `unsound` counts images attacked within their certified radius. Where fewer than `images` were
    attacked, `attacked` and `curve` belong to the first `attack_images`, whose clean and certified
    accuracies are `attack_clean` and `attack_certified`. `variant` tells apart rows of one family.
    `attack` is the name of the attack. `local` has, at `radii`, the shares of the first
    `local_images` test images that are "certified", "local" with bounds of their surroundings, too,
    and "attacked" in vain; finding them took `local_seconds`.
    `fgsm` are the accuracies of the attacked images under one step of the radius, where asked for.
    `published` has figures of a `source` for the same model: test `error` and `clean` in %,
    constants for the normalised input, and others as `captions` says.
    `certificates`, each by the name of a file, prove `verified`, and the bounds of pairs of classes
    and around images that were found one by one.
    """

    layer: str
    norm: float
    clean: float
    radii: tuple[float, ...]
    certified: tuple[float, ...]
    attacked: tuple[float, ...]
    promised: float | None
    verified: float | None
    proven: bool | None
    sampled: float | None
    images: int
    parameters: int
    step_ms: float
    train_seconds: float
    verify_seconds: float | None
    slack: float
    residual: float
    scale: float
    unsound: int
    undecided: bool = False
    note: str = ""
    curve: dict[str, list[float]] = field(default_factory=dict)
    attack_images: int | None = None
    attack_clean: float | None = None
    attack_certified: tuple[float, ...] = ()
    product: float | None = None
    variant: str = ""
    published: dict[str, float] = field(default_factory=dict)
    source: str = ""
    fgsm: tuple[float, ...] = ()
    attack: str = "pgd"
    local_images: int | None = None
    local: dict[str, list[float]] = field(default_factory=dict)
    local_seconds: float | None = None
    certificates: dict[str, Certificate] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The family and its variant."""
        return f"{self.layer} {self.variant}".rstrip()

    @property
    def label(self) -> str:
        """The row's name, and the norm where it is not ℓ₂."""
        return self.name if self.norm == 2 else f"{self.name} (ℓ∞)"

    @property
    def local_seconds_per_image(self) -> float:
        return (self.local_seconds or 0.0) / (self.local_images or 1)

    @property
    def under_attack(self) -> tuple[int, float, tuple[float, ...]]:
        """How many images were attacked, and their clean and certified accuracies."""
        if self.attack_images is None or self.attack_clean is None:
            return self.images, self.clean, self.certified
        return self.attack_images, self.attack_clean, self.attack_certified

    def violations(self) -> list[str]:
        """Which invariants fail; empty when the row is consistent.

        certified ≤ attacked ≤ clean, sampled ≤ verified ≤ promised, each beyond rounding.
        """
        found = []
        _, clean, proved = self.under_attack
        attacks = {"attacked": self.attacked} | ({"FGSM": self.fgsm} if self.fgsm else {})
        for name, shares in attacks.items():
            for radius, certified, attacked in zip(self.radii, proved, shares, strict=True):
                if not certified <= attacked <= clean:
                    found.append(
                        f"{self.label}: at radius {radius:g} certified {certified:.4f}, {name} "
                        f"{attacked:.4f}, clean {clean:.4f} are not in this order"
                    )
        for k, radius in enumerate(self.radii if self.local else ()):
            three = [self.local[name][k] for name in LOCAL]
            if sorted(three) != three:
                said = ", ".join(f"{n} {v:.4f}" for n, v in zip(LOCAL, three, strict=True))
                found.append(
                    f"{self.label}: at radius {radius:g}, of the first {self.local_images} images, "
                    f"{said} are not in this order"
                )
        if self.unsound:
            found.append(
                f"{self.label}: {self.unsound} images broken inside their certified radius"
            )
        chain = [
            (name, value)
            for name, value in (
                ("sampled", self.sampled),
                ("verified", self.verified),
                ("promised", self.promised),
            )
            if value is not None
        ]
        for (low, smaller), (high, larger) in pairwise(chain):
            if not smaller <= larger * (1 + 1e-6):
                found.append(f"{self.label}: {low} bound {smaller!r} exceeds {high} {larger!r}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the norm as 2 or "inf"."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "certificates"}
        norm = 2 if self.norm == 2 else "inf"
        return values | {"norm": norm, "violations": self.violations()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Row:
        """The inverse of `to_dict`."""
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        kept.pop("violations", None)
        for name in ("step_ms", "train_seconds", "residual"):
            kept[name] = math.nan if kept[name] is None else kept[name]
        kept["norm"] = float(values["norm"])
        return cls(**kept)
