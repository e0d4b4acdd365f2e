"""Derive a layer that the package does not have, prove it, refute a wrong one, emit and train it.

    pip install ".[train]"
    python examples/derive_a_layer.py

The layer: an autoencoder with tied weights, x ↦ Vσ(Vᵀx + b). For which V is it 1-Lipschitz?
"""

from pathlib import Path

import torch
from sympy import Identity, MatrixSymbol, ZeroMatrix
from torch import nn

import sdplip
from sdplip import conditions
from sdplip.conditions import m, n
from sdplip.derive import Derivation, Free, lemmas
from sdplip.layers import OrthogonalLinear
from sdplip.train import data

# 1. The condition for x ↦ Hx + Gσ(Wᵀx + b), for matrices of any size: here H = 0, G = W = V.
print("condition:", conditions.residual.matrix)

# 2. An ansatz: divide a free W by the root of a diagonal T that dominates WᵀW.
W, q = MatrixSymbol("W", m, n), MatrixSymbol("q", n, 1)
dominance = lemmas.diagonal_dominance("T", W.T * W, q)  # T − WᵀW ⪰ 0
root = lemmas.root("R", dominance)  # R² = T
R = root.symbol
V = W * R.I


def tied(name: str, V, argument) -> Derivation:
    return Derivation(
        name=name,
        title="Tied-weight autoencoder layer",
        claim="x ↦ Vσ(Vᵀx + b) with V = WT^(−1/2) is 1-Lipschitz for every W and every q > 0.",
        source="examples/derive_a_layer.py",
        condition=conditions.residual,
        free=[Free(W), Free(q, "ratios")],
        definitions=[dominance, root],
        ansatz={"H": ZeroMatrix(m, m), "G": V, "W": V, "Lam": Identity(n), "rho": 1},
        argument=argument,
        controls={"decoder twice as strong": {"G": 2 * V}, "no division": {"G": W}},
    )


# 3. The argument: the Schur complement of the identity, then a congruence, then the lemma.
derivation = tied("tied", V, argument=lambda s: s.simplify().schur().congruence(R).conclude())
proof = derivation.prove()
print(f"\n{derivation.title}: {proof.status}")
for step in proof.document["steps"]:
    print(f"  {step['name']} ({step['direction']}): {step['reason']}")
for check in proof.checks:
    print(f"  {'ok' if check.holds else 'FAILS'}  {check.name}: {check.detail}")
assert proof.proved

# 4. A wrong ansatz comes back with a counterexample in exact numbers.
wrong = tied("tied-wrong", 2 * W * R.I, argument=derivation.argument).prove()
found = wrong.counterexample
print(f"\nwith 2V instead of V: {wrong.status}; {wrong.broken}")
print(f"  two inputs with ‖Δy‖² / ‖Δx‖² = {found.ratio()}, true constant {found.constant:.4g}")
assert wrong.status == "refuted"

# 5. The Torch layer, as a class and as source to keep.
Tied = derivation.layer("TiedLinear")
Path("tied.py").write_text(derivation.emit("TiedLinear"))

# 6. An ordinary module: train it, then verify what was trained.
digits = data.load("digits")
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), Tied(64, 128), Tied(64, 128), OrthogonalLinear(64, 10))
optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
x, y = digits.train
for _ in range(15):
    for batch in torch.randperm(len(x)).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(10 * network(x[batch]), y[batch]).backward()
        optimiser.step()

with torch.no_grad():
    accuracy = (network(digits.test[0]).argmax(dim=1) == digits.test[1]).float().mean()
layer = network[1]
certificate = sdplip.lipschitz(layer.system())
print(f"\naccuracy on digits {accuracy:.1%}, written tied.py")
print(f"one layer: promised {layer.lipschitz}, verified {certificate.bound:.6f}")
assert certificate.bound <= layer.lipschitz * (1 + 1e-6)
