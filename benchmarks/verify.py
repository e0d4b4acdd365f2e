"""Time, memory, bound and gap of `sdplip.lipschitz`, by network and method.

    python benchmarks/verify.py                          # the table, own methods and peers
    python benchmarks/verify.py --cases 5x32 16x64 --methods auto SCS --plot verify.png
    python benchmarks/verify.py --cases "conv 3x4, 8x8" --methods auto frequency

Random perceptrons have weights N(0, 1/n_in), seed 0; 'trained 16x64' is trained here on the digits
of scikit-learn, seed 0. Every figure comes from a process of its own, stopped after --limit seconds
of the processor, so that memory and imports do not mix. Seconds are those of the processor for one
call with lower=False, imports excluded and the proof included: what CVXPY's solvers find goes
through the same proof. 'eclipse' is the layerwise closed form of ECLipsE-Fast (Xu, Sivaranjani,
NeurIPS 2024), written here; 'product' the product of norms. Networks of others need SDPLIP_NETS.
"""

import argparse
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WIDE = {f"1x{n}": (64, n, 10) for n in (32, 64, 128, 256, 512)} | {"1x1024": (784, 1024, 10)}
DEPTHS = {16: (2, 4, 8, 16, 32, 64), 32: (2, 5, 10, 16, 20, 32, 64, 128, 256), 64: (2, 5, 16, 64)}
DEEP = {
    f"{depth}x{width}": (width, *[width] * depth, 10)
    for width, depths in DEPTHS.items()
    for depth in depths
}
EQUILIBRIA = {"equilibrium 80": 80, "equilibrium 250": 250}
IMAGES = {
    **{f"conv {depth}x{c}, 8x8": (depth, c, 8, 0) for depth, c in ((2, 4), (3, 4), (5, 4))},
    **{f"conv {depth}x{c}, 8x8, head": (depth, c, 8, 10) for depth, c in ((2, 4), (3, 4))},
    "conv 3x2, 16x16": (3, 2, 16, 0),
}
"""Convolutions, channels, side of the image, and outputs of a dense head."""
RESIDUAL = "residual 8 blocks of 64"
TRAINED = "trained 16x64"
STORED = (
    "digits_fnn2", "digits_fnn3", "lipsdp_random", "lipsdp_mnist", "mnist_mlp_9x32",
    "lben_gamma1_w80", "conv_chain_4x8", "conv_chain_8x8",
)  # fmt: skip
CASES = [*WIDE, *DEEP, TRAINED, *EQUILIBRIA, RESIDUAL, *IMAGES, *STORED]
PEERS = {"CLARABEL": 70, "SCS": 200, "CVXOPT": 200, "SDPA": 400}
"""Above so many units each takes more than minutes."""


def perceptron(sizes):
    from sdplip import System

    rng = np.random.default_rng(0)
    pairs = itertools.pairwise(sizes)
    return System.feedforward([rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairs])


def trained():
    """16 hidden layers of 64 ReLU units, 64 inputs, 10 classes, fitted to the digits."""
    import torch
    from sklearn.datasets import load_digits

    from sdplip import System

    torch.manual_seed(0)
    images, labels = map(torch.as_tensor, load_digits(return_X_y=True))
    images, places = images.float() / 16, torch.randperm(len(images))
    test, fitted = places[:360], places[360:]
    sizes = [64] * 17 + [10]
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    for layer in layers:
        torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    steps = itertools.chain(*((layer, torch.nn.ReLU()) for layer in layers[:-1]))
    model = torch.nn.Sequential(*steps, layers[-1])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        for batch in fitted[torch.randperm(len(fitted))].split(64):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimiser.step()
    right = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"{TRAINED}: {100 * right:.1f} % of the test images right", file=sys.stderr)
    return System.from_module(model)


def convolutions(depth, channels, side, outputs):
    """3 x 3 kernels N(0, 2/n_in), zero padding and ReLU between; a head is N(0, 2/n_in), too."""
    from sdplip.convolutional import Activate, Convolve, ConvSystem, Head

    rng = np.random.default_rng(0)

    def kernel(*shape):
        return rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[1:]))

    stages = [Convolve(kernel(channels, 1, 3, 3))]
    for _ in range(depth - 1):
        stages += [Activate(), Convolve(kernel(channels, channels, 3, 3))]
    if outputs:
        stages += [Activate(), Head(kernel(outputs, channels * side**2))]
    return ConvSystem(tuple(stages), 1, (side, side))


def network(name):
    """The network of this name; None where SDPLIP_NETS is needed and not set."""
    from sdplip import System

    if name in WIDE | DEEP:
        return perceptron((WIDE | DEEP)[name])
    if name in IMAGES:
        return convolutions(*IMAGES[name])
    if name == TRAINED:
        return trained()
    rng = np.random.default_rng(0)
    if name in EQUILIBRIA:
        n = EQUILIBRIA[name]
        A = rng.normal(size=(n, n))
        A *= 0.9 / np.linalg.norm(A, 2)
        return System.equilibrium(
            A, rng.normal(size=(n, 64)) / 8, rng.normal(size=(10, n)) / n**0.5
        )
    if name == RESIDUAL:

        def dense(*shape):
            return rng.normal(size=shape) / shape[1] ** 0.5

        net = System.elementwise("relu", 64) @ System.linear(dense(64, 64))
        for _ in range(8):
            body = System.feedforward([dense(64, 64), dense(64, 64)])
            net = System.elementwise("relu", 64) @ (body + System.linear(np.eye(64))) @ net
        return System.linear(dense(10, 64)) @ net
    if "SDPLIP_NETS" not in os.environ:
        return None
    from sdplip.importing import load

    return load(Path(os.environ["SDPLIP_NETS"]) / f"{name}.npz")


def eclipse(system):
    """γ by ECLipsE-Fast, for a chain with slopes in [0, 1]; None for anything else."""
    levels = system.levels
    if levels is None or system.D.any() or system.alpha.any() or (system.beta != 1).any():
        return None
    if any(
        system.A[np.ix_(levels[k], levels[j])].any()
        for k in range(len(levels))
        for j in range(k - 1)
    ) or any(system.B[level].any() for level in levels[1:]):
        return None
    X = np.eye(system.inputs)
    for k, level in enumerate(levels):
        W = system.B[level] if k == 0 else system.A[np.ix_(level, levels[k - 1])]
        K = W @ np.linalg.solve(X, W.T) / 4
        size = 1 / (2 * np.linalg.norm(K, 2))
        X = size * np.eye(len(level)) - size**2 * K
    C = system.C[:, levels[-1]]
    return math.sqrt(np.linalg.norm(C @ np.linalg.solve(X, C.T), 2))


def one(name, method, limit):
    """One measurement, in this process."""
    from sdplip import lipschitz
    from sdplip.verify import norm_product

    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit),) * 2)
    # What is imported on the way, also by the start of a deep chain.
    lipschitz(perceptron((2,) * 20), lower=False)
    if method.isupper():
        lipschitz(perceptron((2, 2, 1)), method=method, lower=False)
    system = network(name)
    if system is None:
        return None
    began, wall = time.process_time(), time.perf_counter()
    found = {"gap": None, "proven": False, "method": method}
    dense = hasattr(system, "levels")
    if method == "frequency" if dense else method in ("eclipse", "product"):
        return None
    if method == "eclipse":
        found["bound"] = eclipse(system)
    elif method == "product":
        found["bound"] = norm_product(system)
    else:
        certificate = lipschitz(system, method=method, lower=False)
        found |= {k: getattr(certificate, k) for k in ("bound", "gap", "proven", "inflation")}
        found["method"] = certificate.solver
    found["seconds"] = time.process_time() - began
    found["wall"] = time.perf_counter() - wall
    found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found["units"] = system.units
    return found


def measure(name, method, limit):
    command = [sys.executable, __file__, "--one", name, method, "--limit", str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5 * limit, env=environment, check=True
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit:g} s"}
    except subprocess.CalledProcessError as error:
        if error.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            return {"failed": f"more than {limit:g} s"}
        return {"failed": (error.stderr.strip().splitlines() or ["?"])[-1][:60]}
    if method == "auto":
        print(done.stderr, end="", file=sys.stderr)
    # SDPA writes what it does before.
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="CASE")
    parser.add_argument("--methods", nargs="+", default=["auto", "eclipse", "product", *PEERS])
    parser.add_argument(
        "--limit", type=float, default=150, help="seconds of the processor for each"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="draw seconds against units here")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one, options.limit)))
        return
    import cvxpy

    results = []
    print(
        f"{'network':<25}{'method':<11}{'seconds':>9}{'wall':>8}{'MB':>7}{'bound':>15}{'gap':>9}"
        f"{'inflation':>11}  proven"
    )
    for name, method in itertools.product(options.cases, options.methods):
        if method in PEERS:
            system = network(name)
            small = (
                system is not None and system.units <= PEERS[method] and hasattr(system, "levels")
            )
            if method not in cvxpy.installed_solvers() or not small:
                continue
        found = measure(name, method, options.limit)
        if found is None or ("bound" in found and found["bound"] is None):
            continue
        results.append({"network": name, "asked": method} | found)
        if "failed" in found:
            print(f"{name:<25}{method:<11}{found['failed']:>9}", flush=True)
            continue
        gap, inflation = (
            "" if found.get(k) is None else f"{found[k]:.1e}" for k in ("gap", "inflation")
        )
        print(
            f"{name:<25}{found['method']:<11}{found['seconds']:>9.2f}{found['wall']:>8.2f}"
            f"{found['megabytes']:>7.0f}{found['bound']:>15.9g}{gap:>9}{inflation:>11}"
            f"  {'yes' if found['proven'] else 'no'}",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


def plot(results, path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, names, title in ((axes[0], WIDE, "one hidden layer"), (axes[1], DEEP, "deep")):
        shown = [r for r in results if r["network"] in names and "seconds" in r]
        for method in dict.fromkeys(r["asked"] for r in shown):
            points = sorted((r["units"], r["seconds"]) for r in shown if r["asked"] == method)
            axis.loglog(*zip(*points, strict=True), "o", markersize=4, label=method)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.set_title(title, loc="left")
        axis.set_xlabel("hidden units")
    axes[0].set_ylabel("seconds of the processor")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    main()
