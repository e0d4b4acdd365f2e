"""Local certificates: class margins bounded on the ball around one image, not everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..._arrays import Array
from ...errors import CertificationError, NotConverged, NotWellPosed
from ...system import System
from .certify import margins

if TYPE_CHECKING:
    from ...verify import Certificate


def certified_locally(
    system: System,
    x: Tensor,
    labels: Tensor,
    logits: Tensor,
    pairs: Tensor,
    radii: Sequence[float],
    norm: float = 2,
    slack: float | None = None,
    error: Tensor | None = None,
) -> tuple[Tensor, dict[tuple[int, int, int], Certificate]]:
    """At which radii each prediction is proved constant, by `pairs` or by bounds of its own ball.

    An image of class t keeps it on the ball of radius r (norm 2 or inf) if there every difference
    z_t − z_j stays positive. One that `pairs` leaves open is bounded from below by intervals and
    linear bounds; if that is not enough, by its Lipschitz bound L on the ball, as L·r below the
    margin. Balls contain smaller ones, so the first radius that fails ends the search.

    `x` (N, m) float64 are inputs of `system` and `logits` (N, K) what it makes of them; the others
    as in `certified_radii`. Returns (N, len(radii)) bool, on the CPU; and by image and classes
    (i, t, j) the certificates of the bounds L on the largest ball that is proved, where neither
    `pairs` nor intervals decide.

    Raises:
        ShapeError, InvalidInput: as `verify.lipschitz` in a region.
    """
    certain = margins(logits, labels, slack, error)
    taken = (margins(logits, labels, slack=0) - certain).nan_to_num(0).amax(-1).tolist()
    proved = torch.zeros(len(x), len(radii), dtype=torch.bool)
    certificates = {}
    for i, image in enumerate(x.cpu().numpy()):
        t = int(labels[i])
        margin, known = certain[i].cpu().numpy(), pairs[t].cpu().numpy()
        largest: dict[int, Certificate] = {}
        for k in np.argsort(radii):
            found = _certified(system, image, float(radii[k]), norm, t, margin, taken[i], known)
            if found is None:
                break
            proved[i, k], largest = True, found
        certificates.update({(i, t, j): certificate for j, certificate in largest.items()})
    return proved, certificates


def _certified(
    system: System,
    image: Array,
    radius: float,
    norm: float,
    label: int,
    margin: Array,
    taken: float,
    known: Array,
) -> dict[int, Certificate] | None:
    """The bounds that were needed, by the other class; None where the ball is not proved."""
    from ...verify import Region, lipschitz
    from ...verify.local import preactivations

    if not (margin > 0).all():
        return None
    # A constant difference (0) lasts for ever; NaN and an infinite bound prove nothing.
    reach = np.divide(margin, known, out=np.full(len(margin), np.inf), where=known != 0)
    order = np.argsort(reach)
    left = order[(order != label) & ~(reach[order] > radius)]
    if not left.size:
        return {}
    if norm == 2:
        region = Region.ball(image, radius)
    else:
        low, high = np.nextafter(image - radius, -np.inf), np.nextafter(image + radius, np.inf)
        region = Region.box(low, high)
    try:
        least, _ = preactivations(_with_differences(system, label, left), region)
        found = {}
        for j in map(int, left[~(least[system.units :] > taken)]):
            found[j] = lipschitz(system, norm, classes=(label, j), region=region, lower=False)
            if not found[j].bound * radius < margin[j]:
                return None
        return found
    except (CertificationError, NotConverged, NotWellPosed):
        return None


def _with_differences(system: System, label: int, others: NDArray[np.intp]) -> System:
    """The system with a unit more for each difference of outputs y_label − y_j."""
    n, k = system.units, len(others)
    C, D, c = (getattr(system, name)[[label]] - getattr(system, name)[others] for name in "CDc")
    return System(
        A=np.block([[system.A, np.zeros((n, k))], [C, np.zeros((k, k))]]),
        B=np.vstack([system.B, D]),
        C=np.zeros((0, n + k)),
        D=np.zeros((0, system.inputs)),
        b=np.concatenate([system.b, c]),
        alpha=np.concatenate([system.alpha, np.ones(k)]),
        beta=np.concatenate([system.beta, np.ones(k)]),
        activation=np.concatenate([system.activation, np.full(k, "identity")]),
    )
