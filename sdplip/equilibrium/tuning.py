"""What a layer learns about its solver while its weights drift: the step, and when to look."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

REFRESH = 50
"""Solves after which the step is chosen anew: it costs two eigenvalue problems."""

CHECK_EVERY = 4
"""Iterations between two looks at the residual: a look costs one more product with A."""

LOOKS = {False: "look", True: "adjoint_look"}


@dataclass
class Tuning:
    """The step of a method, kept over REFRESH solves, and the iterations that they needed.

    Any step leads to the same equilibrium, so that an old one costs iterations, not accuracy.

    Attributes:
        step: the step, or None before the first choice.
        method: what it is the step of.
        age: solves since it was chosen.
        looks: the most iterations that a solve needed, of the equation and of its adjoint: the
            residual is looked at for the first time then.
    """

    step: float | None = None
    method: str = ""
    age: int = 0
    looks: dict[bool, int] = field(default_factory=dict)

    def knows(self, method: str) -> bool:
        """Whether the step of `method` is not too old."""
        return self.step is not None and self.method == method and self.age < REFRESH

    def choose(self, method: str, compute: Callable[[], float]) -> float:
        """The step, from `compute` if it is too old or of another method."""
        if not self.knows(method):
            self.step, self.method, self.age = compute(), method, 0
            self.looks.clear()
        self.age += 1
        return cast(float, self.step)

    def first(self, adjoint: bool) -> int:
        """The iterations before the first look at the residual."""
        return self.looks.get(adjoint, CHECK_EVERY)

    def observe(self, adjoint: bool, needed: int) -> None:
        """Note the iterations that a solve needed; twice as many as at first call for a step."""
        before = self.looks.setdefault(adjoint, needed)
        if needed > 2 * max(before, CHECK_EVERY):
            self.age = REFRESH
        self.looks[adjoint] = max(before, needed)

    def state(self) -> dict[str, str | float]:
        """What to save of it, so that training goes on from there exactly as it would have."""
        if self.step is None:
            return {}
        looks = {LOOKS[adjoint]: steps for adjoint, steps in self.looks.items()}
        return {"step": self.step, "step_of": self.method, "step_age": self.age, **looks}

    def load(self, state: Mapping[str, object]) -> None:
        """Take over what was saved, unless it makes no sense."""
        step, method, age = (state.get(name) for name in ("step", "step_of", "step_age"))
        looks = {adjoint: state[name] for adjoint, name in LOOKS.items() if name in state}
        if (
            isinstance(step, float)
            and 0 < step < math.inf
            and isinstance(method, str)
            and all(type(count) is int and 0 <= count <= 10**6 for count in (age, *looks.values()))
        ):
            self.step, self.method = step, method
            self.age, self.looks = cast(int, age), cast(dict[bool, int], looks)
        else:
            self.step = None
