"""How often a solve waits for a number that a device computes: never in every iteration."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from well_posed import drive, lben

from sdplip.equilibrium import solve
from sdplip.equilibrium.tuning import CHECK_EVERY
from sdplip.layers import LBENConv2d, LBENLinear, MONLinear, NEMONLinear

aten = torch.ops.aten
LAYERS = {
    "lben": (lambda: LBENLinear(20, 60, 10, gamma=1.0), (20,)),
    "mon": (lambda: MONLinear(20, 60, 10), (20,)),
    "nemon": (lambda: NEMONLinear(20, 60, 10), (20,)),
    "convolution": (lambda: LBENConv2d(1, 6, 4, 3, gamma=0.1), (1, 6, 6)),
}


class Waits(TorchDispatchMode):
    """Counts the operations whose result the host needs, which stop a GPU's queue: numbers read,
    and shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func.overloadpacket in (aten.index, aten.index_put_) else ()
        masked = any(i is not None and i.dtype == torch.bool for i in indices)
        read = (aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select)
        self.count += masked or func.overloadpacket in read
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stiff", [1.0, 6.0])
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_of_training_waits_a_few_times_whatever_its_iterations(name, stiff):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().train(), torch.randn(32, *shape)
    with torch.no_grad():
        getattr(layer, "T" if name == "nemon" else "V").mul_(stiff)
    for _ in range(3):
        layer(x).sum().backward()
    with Waits() as forward:
        y = layer(x)
    with Waits() as backward:
        y.sum().backward()
    assert forward.count <= 4 and backward.count <= 3
    if name == "mon" and stiff > 1:
        assert min(layer._tuning.looks.values()) > 8


@pytest.mark.parametrize(
    "method", ["peaceman_rachford", "average", "adaptive", "forward_backward+anderson"]
)
def test_a_look_at_the_rows_waits_three_times(method):
    A, Lam = lben(12, 0.3)
    for tol in (1e-3, 1e-9):
        with Waits() as waits:
            found = solve(A, drive(40, 12), metric=Lam, method=method, step=0.05, tol=tol)
        looks = int(found.steps.max()) / CHECK_EVERY
        assert found.converged.all() and looks > 4
        assert waits.count <= 3 * looks + 9
