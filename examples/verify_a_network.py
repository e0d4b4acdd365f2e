"""Bound the Lipschitz constant of a network that somebody else trained, and keep the proof.

python examples/verify_a_network.py
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import sdplip

torch.manual_seed(0)
network = nn.Sequential(
    nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
)

# Multipliers are proposed by a solver; the bound is then proven without it.
certificate = sdplip.lipschitz(network)
print(f"constant in [{certificate.lower:.4f}, {certificate.bound:.4f}]")
print(f"product of the layers' norms: {certificate.norm_product:.4f}")

# Anyone can check the certificate from the file and the weights alone.
system = sdplip.System.from_module(network)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "network.cert.json"
    certificate.save(path)
    sdplip.check(sdplip.Certificate.load(path), system)
print("the certificate holds")

# A network whose weights changed is another network.
with torch.no_grad():
    network[0].weight[0, 0] += 1e-6
try:
    sdplip.check(certificate, sdplip.System.from_module(network))
except sdplip.CertificationError as error:
    print(f"refused: {error}")
