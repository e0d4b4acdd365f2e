"""What closed forms of T give away against the least diagonal T ⪰ WᵀW.

    python benchmarks/tightness.py                        # Xavier weights, 16 to 256 units
    python benchmarks/tightness.py --trained              # weights of an AOL network for digits
    python benchmarks/tightness.py --plot tightness.png

'trace / least' compares ΣT with the semidefinite program's optimum, '1 / norm²' says by how much T
could be shrunk as a whole. `--singular-values PNG` draws the singular values of AOL's layers before
and after training on digits.
"""

import argparse
from functools import partial

import torch
from torch import nn

from sdplip.derive import tightness
from sdplip.layers import AOLLinear, aol, spectral
from sdplip.layers.closed_forms import gram_power
from sdplip.train import data

POWERS = (2, 4, 8, 16)


def power(W: torch.Tensor, p: int) -> dict[str, torch.Tensor]:
    return {"T": gram_power(W.mT @ W, power=p)}


WITNESSES = {
    "AOL": aol.witness,
    "spectral norm": spectral.witness,
    **{f"Gram power {p}": partial(power, p=p) for p in POWERS},
}


def trained(epochs: int = 30) -> tuple[list[AOLLinear], list[torch.Tensor]]:
    """AOL's layers of a network trained on digits, and their singular values before training."""
    torch.manual_seed(0)
    digits = data.load("digits")
    layers = [AOLLinear(64, 128), AOLLinear(128, 128), AOLLinear(128, 10)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    before = [torch.linalg.svdvals(layer.witness()["D"]).detach() for layer in layers]
    network = nn.Sequential(nn.Flatten(), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    x, y = digits.train
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(8 * network(x[batch].float()), y[batch]).backward()
            optimiser.step()
    return layers, before


def draw(layers: list[AOLLinear], before: list[torch.Tensor], path: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, layer, old in zip(figure.subplots(1, len(layers)), layers, before, strict=True):
        new = torch.linalg.svdvals(layer.witness()["D"].detach())
        axes.plot(old, label="before", color="0.6")
        axes.plot(new, label="after training", color="tab:blue")
        axes.set(title=f"{layer.in_features} → {layer.out_features}", ylim=(0, 1.05))
        axes.set_xlabel("singular value, by size")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trained", action="store_true", help="AOL networks trained on digits")
    parser.add_argument("--plot", metavar="PNG", help="draw the ratios")
    parser.add_argument("--singular-values", metavar="PNG", help="draw AOL's singular values")
    options = parser.parse_args()
    weights = None
    if options.trained or options.singular_values:
        layers, before = trained()
        weights = [layer.weight.detach().double().numpy() for layer in layers[:2]]
        if options.singular_values:
            draw(layers, before, options.singular_values)
        for layer, old in zip(layers, before, strict=True):
            new = torch.linalg.svdvals(layer.witness()["D"].detach())
            print(
                f"{layer.in_features}→{layer.out_features}: mean singular value "
                f"{old.mean():.3f} before, {new.mean():.3f} after training"
            )
    found = tightness(WITNESSES, weights=weights if options.trained else None)
    print(found.text())
    if options.plot:
        found.plot(options.plot)


if __name__ == "__main__":
    main()
