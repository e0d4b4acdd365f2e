"""The equilibrium of a layer as the limit of a neural ODE, at a certified rate.

    pip install ".[ode]"
    python examples/neural_ode.py

ż = -z + σ(Az + v) with v = Bx + b rests at z* = σ(Az* + v), the equilibrium of the layer.

LBEN. Let m > 0 be the modulus of its condition, wᵀΛ(I - A)w ≥ m‖w‖²_Λ, and s = min(m, 1/2). With
slopes in [0, 1], w = σ(Az + v) - z* and r² = 2wᵀΛA(z - z*) - ‖w‖²_Λ at t = 0, every solution has

    ‖w(t)‖_Λ ≤ r e^{-st}
    ‖z(t) - z*‖_Λ ≤ e^{-t} ‖z(0) - z*‖_Λ + r (e^{-st} - e^{-t}) / (1 - s).

Proof. For u = Az + v, u* = Az* + v, δ = u - u* the ODE says u̇ = -δ + Aw. Take Lur'e's function
V = Σ_i λ_i ∫ (σ(a) - z*_i) da from u*_i to u_i. As slopes lie in [0, 1], V ≥ ‖w‖²_Λ / 2, and so is
what V leaves of wᵀΛδ, the integral of the inverse function: V + ‖w‖²_Λ / 2 ≤ wᵀΛδ. Hence

    V̇ = wᵀΛu̇ = -wᵀΛδ + wᵀΛAw ≤ -wᵀΛδ + (1 - m)‖w‖²_Λ ≤ -V + (1/2 - m)‖w‖²_Λ ≤ -2sV,

and ‖w(t)‖²_Λ ≤ 2V(t) ≤ 2V(0) e^{-2st} ≤ r² e^{-2st}. Finally z(t) - z* is e^{-t} (z(0) - z*) plus
the integral of e^{-(t - a)} w(a) da from 0 to t. ∎

That is convergence to z*. Two solutions need not approach each other in a constant norm ‖·‖_P: with
A = [0 10; -10 0] and Λ = I the condition holds, but ReLU's patterns (1, 0), then (0, 1), pump.

NEMON contracts in that sense. Its measure μ_{∞,η}(A) ≤ c < 1 and the secant slopes d_i in [0, 1]
give row i of -I + diag(d)A the measure -1 + d_i c at most, so that for every two solutions

    ‖z(t) - y(t)‖_{∞,η} ≤ e^{-(1 - max(c, 0))t} ‖z(0) - y(0)‖_{∞,η},  ‖x‖_{∞,η} = max_i |x_i| / η_i.
"""

import sys

import torch

from sdplip.equilibrium import monotonicity
from sdplip.layers import LBENLinear, NEMONLinear

try:
    from torchdiffeq import odeint
except ImportError:
    sys.exit('examples/neural_ode.py needs torchdiffeq: pip install "sdplip[ode]"')

torch.set_grad_enabled(False)
torch.manual_seed(0)
x = 3 * torch.randn(1, 8, dtype=torch.float64)
times = torch.linspace(0, 20, 9, dtype=torch.float64)


def drawn(layer):
    """The layer's matrices for other weights, A, and the right-hand side of the ODE."""
    for parameter in layer.parameters():
        parameter.normal_(std=0.4)
    w = layer.witness()
    A, v = w["A"], x @ w["B"].mT + layer.bias
    return w, A, lambda t, z: -z + torch.relu(z @ A.mT + v)


def solve(right, start):
    return odeint(right, start, times, rtol=1e-9, atol=1e-11)


def show(title, distance, bound):
    print(f"{title}\n{'t':>6} {'distance':>10} {'certified':>10}")
    for row in zip(times.tolist(), distance.tolist(), bound.tolist(), strict=True):
        print("{:6.1f} {:10.2e} {:10.2e}".format(*row))
    assert (distance <= bound + 1e-7).all()


layer = LBENLinear(8, 20, 3, gamma=4.0, eps=0.2, dtype=torch.float64, tol=1e-12).eval()
w, A, right = drawn(layer)
s = min(monotonicity(A, w["Lam"])[0], 0.5)
root, rest, start = w["Lam"].sqrt(), layer.solve(x).z, torch.zeros(1, 20, dtype=torch.float64)
path = solve(right, start)

jump = right(0, start) + start - rest
r = (w["Lam"] * jump * (2 * (start - rest) @ A.mT - jump)).sum().sqrt()
slow, fast = (-s * times).exp(), (-times).exp()
bound = fast * ((start - rest) * root).norm() + r * (slow - fast) / (1 - s)
distance = ((path - rest) * root).flatten(1).norm(dim=1)
show(f"LBEN: ‖z(t) - z*‖_Λ, rate {s:.3f}", distance, bound)
difference = (path[-1] @ w["C"].mT + layer.out_bias - layer(x)).abs().max()
print(f"output at t = {times[-1]:.0f} and the layer's: {difference:.1e} apart\n")

layer = NEMONLinear(8, 20, 3, c=0.5, dtype=torch.float64).eval()
w, A, right = drawn(layer)
one, other = (solve(right, 5 * torch.randn_like(start)) for _ in range(2))
distance = ((one - other) / w["eta"]).flatten(1).abs().amax(dim=1)
rate = 1 - max(layer.c, 0)
show(f"NEMON: ‖z(t) - y(t)‖_∞,η, rate {rate}", distance, (-rate * times).exp() * distance[0])
