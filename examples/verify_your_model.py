"""Bound the Lipschitz constant of an ordinary trained network, prove it, and let others check it.

pip install ".[train]"
python examples/verify_your_model.py
"""

from pathlib import Path

import torch
from torch import nn

import sdplip
from sdplip.train import load

# 1. A network as anybody trains it: no layer of ours, no penalty.
digits = load("digits")
torch.manual_seed(0)
model = nn.Sequential(
    nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
)
optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
x, y = digits.train
for _ in range(10):
    for batch in torch.randperm(len(x)).split(64):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimiser.step()

# 2. The bound: multipliers are proposed by a solver, what they give is proven without it.
certificate = sdplip.lipschitz(model, input_shape=(1, 8, 8))
print(f"constant in [{certificate.lower:.4f}, {certificate.bound:.4f}]")
print(f"product of the layers' norms: {certificate.norm_product:.4f}")

# 3. The certificate is checked from its file and the weights; also: sdplip check FILE NETWORK.
system = sdplip.System.from_module(model)
certificate.save(Path("network.cert.json"))
system.save(Path("network.npz"))
sdplip.check(sdplip.Certificate.load(Path("network.cert.json")), system)
print("the certificate holds; written network.cert.json, network.npz")

# 4. What it is good for: no image that moves by less than its radius changes its class. Differences
# of two outputs have smaller bounds than all outputs together.
inputs, labels = digits.test
with torch.no_grad():
    outputs = model.double()(inputs.double())
radius = torch.as_tensor(sdplip.margin_bounds(system).radius(outputs))
right = outputs.argmax(dim=1) == labels
print(f"accuracy {right.double().mean():.1%}", end=", ")
print(f"certified at radius 0.1: {(right & (radius > 0.1)).double().mean():.1%}")

# 5. A network whose weights changed is another network.
with torch.no_grad():
    model[1].weight[0, 0] += 1e-6
try:
    sdplip.check(certificate, sdplip.System.from_module(model))
except sdplip.CertificationError as error:
    print(f"refused: {error}")
else:
    raise AssertionError("a changed network must not pass")
