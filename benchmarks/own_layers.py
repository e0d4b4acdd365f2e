"""Certified accuracy of the package's own layers against shipped ones, at equal training time.

    python benchmarks/own_layers.py --data digits                     # all networks, ℓ₂ and ℓ∞
    python benchmarks/own_layers.py --data mnist --only "*nemon*"     # 5,000 training images

Every network gets the same seconds of the training thread's CPU time, the same batches per seed,
Adam, and each of the learning rates --lr, up to it at 40 % of the time and down again. The own
layers are emitted from `derivations/`. ℓ₂: either two residual blocks of 64 units or a stack of two
layers of 64 units with ReLU (sandwich layers have their own), then an OrthogonalLinear; the loss is
the margin loss of `sdplip.train` at L = 1. ℓ∞: one equilibrium layer of 64 units; NEMON learns
from the cross-entropy plus a weight times its ℓ∞ bound, bounded NEMON from the margin loss at L = γ
with offset --linf-offset. Accuracies in %, mean ± standard deviation over seeds, on all test
images, for radii per raw pixel; bounds are what `lipschitz_bound` promises (and `linf_pairs` in
ℓ∞) of a float64 copy whose equilibria are exact.
"""

import argparse
import fnmatch
import functools
import json
import math
import runpy
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdplip import System
from sdplip.activations import Activation
from sdplip.layers import LAYERS, Layer, Normalize, OrthogonalLinear, lipschitz_bound
from sdplip.layers.head import last_layer_pairs
from sdplip.train.data import DATASETS, Splits, load
from sdplip.train.evaluation.certify import (
    certified_accuracy,
    certified_radii,
    global_pairs,
    linf_pairs,
)
from sdplip.train.evaluation.evaluate import exact_copy
from sdplip.train.loss import OFFSET, margin_cross_entropy
from sdplip.train.models import linf_bounds

DERIVATIONS = Path(__file__).parent.parent / "derivations"
WIDTH, CLASSES, IMAGES, TOL = 64, 10, 5000, 1e-4
RADII = {2: (0.1, 0.25, 0.5, 1.0), math.inf: (0.01, 0.03, 0.05, 0.1)}


@dataclass(frozen=True)
class Entry:
    """A network: its layers for an input size, the norm it is certified in, how it is trained."""

    name: str
    layers: Callable[[int], list[nn.Module]]
    norm: float = 2
    penalty: float = 0.0


def gelu_slope(v: Tensor) -> Tensor:
    density = torch.exp(-v.square() / 2) / math.sqrt(2 * math.pi)
    return (1 + torch.erf(v / math.sqrt(2))) / 2 + v * density


def no_prox(v: Tensor, step: Tensor | float) -> Tensor:
    raise NotImplementedError("GELU decreases somewhere: it is the prox of no convex function.")


# Its slopes are in ±0.1289 around [0, 1].
GELU = Activation("gelu", -0.13, 1.13, F.gelu, gelu_slope, no_prox)


@functools.cache
def emitted(name: str, file: str | None = None) -> type[Layer]:
    found = runpy.run_path(str(DERIVATIONS / f"{file or name}.py"))
    every = found.get("derivations", [found["derivation"]])
    return next(d for d in every if d.name == name).layer()


def blocks(block: Callable[[int], nn.Module]) -> Callable[[int], list[nn.Module]]:
    return lambda m: [block(m), block(m), OrthogonalLinear(m, CLASSES)]


def stack(linear: Callable[[int], nn.Module], *after: nn.Module) -> Callable[..., list[nn.Module]]:
    head = functools.partial(OrthogonalLinear, WIDTH, CLASSES)
    return lambda m: [linear(m), *after, linear(WIDTH), *after, head()]


ENTRIES = [
    Entry("sll", blocks(lambda m: LAYERS["sll"](m, WIDTH))),
    Entry("cpl", blocks(lambda m: LAYERS["cpl"](m, WIDTH))),
    Entry("reflection", blocks(lambda m: emitted("reflection")(m, WIDTH))),
    Entry(
        "gram_power_residual",
        blocks(lambda m: emitted("gram_power_residual", "gram_power")(m, WIDTH)),
    ),
    Entry("slopes (GELU)", blocks(lambda m: emitted("slopes")(m, WIDTH, activation=GELU))),
    Entry("midpoint", blocks(lambda m: emitted("midpoint")(m, WIDTH, tol=TOL))),
    Entry("aol", stack(lambda m: LAYERS["aol"](m, WIDTH), nn.ReLU())),
    Entry("gram_power", stack(lambda m: emitted("gram_power")(m, WIDTH), nn.ReLU())),
    Entry("sandwich", stack(lambda m: emitted("sandwich")(m, WIDTH, WIDTH))),
    *(
        Entry(
            f"nemon, weight {weight}",
            lambda m: [LAYERS["nemon"](m, WIDTH, CLASSES, tol=TOL)],
            math.inf,
            penalty=weight,
        )
        for weight in (0.01, 0.03)
    ),
    *(
        Entry(
            f"bounded_nemon, γ = {gamma}",
            lambda m, g=float(gamma): [
                emitted("bounded_nemon")(m, WIDTH, CLASSES, gamma=g, tol=TOL)
            ],
            math.inf,
        )
        for gamma in (4, 8, 16)
    ),
]


def build(entry: Entry, splits: Splits, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    m = math.prod(splits.input_shape)
    centre = Normalize(splits.mean * torch.ones(m), torch.ones(m))
    return nn.Sequential(nn.Flatten(), centre, *entry.layers(m))


def train(
    model: nn.Sequential, entry: Entry, splits: Splits, lr: float, seed: int, args: Namespace
) -> int:
    """Train for so many seconds of this thread's time; the number of steps."""
    offset = OFFSET if entry.norm == 2 else args.linf_offset
    x, y = splits.train
    size = 64 if splits.name == "digits" else 128
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    bound = 0.0 if entry.penalty else lipschitz_bound(model, entry.norm)
    generator = torch.Generator().manual_seed(seed)
    steps, began = 0, time.thread_time()
    while True:
        for part in torch.randperm(len(x), generator=generator).split(size):
            done = (time.thread_time() - began) / args.seconds
            if done >= 1:
                return steps
            # 'piecewise' of sdplip.train, in time; the first step must not be lost at rate zero.
            rate = max(float(np.interp(done, [0, 0.4, 0.8, 1], [0, 1, 0.05, 0])), 1e-3)
            for group in optimizer.param_groups:
                group["lr"] = lr * rate
            logits = model(x[part])
            if entry.penalty:
                loss = F.cross_entropy(logits, y[part]) + entry.penalty * sum(linf_bounds(model))
            else:
                loss = margin_cross_entropy(logits, y[part], offset=offset, lipschitz=bound)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1


def measure(model: nn.Sequential, norm: float, splits: Splits) -> dict[str, float]:
    """The promised bound, clean and certified accuracy."""
    exact = exact_copy(model)
    x, y = splits.test
    with torch.no_grad():
        logits = torch.cat([exact(part) for part in x.double().split(1000)])
    bound = lipschitz_bound(exact, norm)
    if norm == 2:
        W = exact[-1].witness()["D"].detach()
        other = last_layer_pairs(lipschitz_bound(exact[:-1], norm), W)
    else:
        other = linf_pairs(System.from_module(exact, features=math.prod(splits.input_shape)))
    radii = certified_radii(logits, y, torch.minimum(global_pairs(bound, CLASSES, norm), other))
    found = {"bound": bound, "clean": float((logits.argmax(-1) == y).double().mean())}
    return found | {str(radius): certified_accuracy(radii, radius) for radius in RADII[norm]}


def run(entry: Entry, splits: Splits, lr: float, args: Namespace) -> dict[str, object]:
    """All seeds of one network, as JSON values."""
    steps, found = [], []
    for seed in range(args.seeds):
        model = build(entry, splits, seed)
        steps.append(train(model, entry, splits, lr, seed, args))
        found.append(measure(model, entry.norm, splits))
    values = {key: [one[key] for one in found] for key in found[0]}
    return {"name": entry.name, "lr": lr, "norm": str(entry.norm), "steps": steps, **values}


def show(row: dict[str, object], seconds: float, norm: float) -> None:
    steps, bound = np.mean(row["steps"]), np.mean(row["bound"])
    line = f"{row['name']:<24}{row['lr']:>8.0e}{1e3 * seconds / steps:>9.2f}{steps:>7.0f}"
    line += f"{bound:>8.3g}"
    for key in ("clean", *map(str, RADII[norm])):
        percent = 100 * np.array(row[key])
        spread = percent.std(ddof=1) if len(percent) > 1 else math.nan
        line += f"{percent.mean():>8.1f} ± {spread:<4.1f}"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", choices=DATASETS[:2], default="digits")
    parser.add_argument("--data-root", help="folder that holds MNIST/raw; default: SDPLIP_DATA")
    parser.add_argument("--seconds", type=float, default=8.0, help="training time of each network")
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-3, 1e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--linf-offset", type=float, default=0.05, help="bounded NEMON's, in γ")
    parser.add_argument("--only", nargs="+", default=["*"], help="names or patterns of networks")
    parser.add_argument("--json", type=Path, help="also write every seed's values here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    splits = load(args.data, args.data_root)
    if args.data == "mnist":
        kept = torch.randperm(len(splits.train[0]), generator=torch.Generator().manual_seed(0))
        x, y = (t[kept[:IMAGES]] for t in splits.train)
        splits = replace(splits, train=(x, y))
    chosen = [e for e in ENTRIES if any(fnmatch.fnmatch(e.name, p) for p in args.only)]
    rows, norm = [], 0.0
    for entry in chosen:
        if entry.norm != norm:
            norm = entry.norm
            warm = Namespace(seconds=0.1, seeds=1, linf_offset=0.1)
            run(entry, splits, 0.0, warm)  # first calls are not what is measured
            heads = "".join(f"{h:^15}" for h in ("clean", *(f"at {r:g}" for r in RADII[norm])))
            title = f"ℓ{'₂' if norm == 2 else '∞'} network"
            print(f"\n{title:<24}{'lr':>8}{'ms/step':>9}{'steps':>7}{'bound':>8}{heads}")
        for lr in args.lr:
            rows.append(run(entry, splits, lr, args))
            show(rows[-1], args.seconds, norm)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
