"""Train a network that is 1-Lipschitz by construction, and certify its predictions.

python examples/train_a_network.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import sdplip
from sdplip.layers import OrthogonalLinear, SLLLinear

torch.manual_seed(0)
digits = load_digits()
x = torch.as_tensor(digits.data / 16, dtype=torch.float32)
y = torch.as_tensor(digits.target)
order = torch.randperm(len(x))
train, test = order[:1400], order[1400:]

network = nn.Sequential(
    SLLLinear(64, hidden=64), SLLLinear(64, hidden=64), OrthogonalLinear(64, 10)
)
optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
for _ in range(300):
    batch = train[torch.randint(len(train), (128,))]
    # Temperature and offset ask for margins, not only for the right answer.
    margin = nn.functional.one_hot(y[batch], 10) * 0.5
    loss = nn.functional.cross_entropy((network(x[batch]) - margin) / 0.1, y[batch])
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()

promised = sdplip.lipschitz_bound(network)
verified = sdplip.lipschitz(network)
print(f"promised {promised:.4f}, verified {verified.bound:.4f}, found {verified.lower:.4f}")

with torch.no_grad():
    top = network(x[test]).topk(2)
right = top.indices[:, 0] == y[test]
# Two logits of an L-Lipschitz network part by at most √2·L·r when the input moves by r.
radius = (top.values[:, 0] - top.values[:, 1]) / (2**0.5 * verified.bound)
print(f"accuracy {right.float().mean():.3f}")
print(f"certified at radius 0.2: {(right & (radius > 0.2)).float().mean():.3f}")
