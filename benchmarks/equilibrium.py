"""Equilibrium layers against the public solvers and torchdeq at equal true error, and their floor.

    python benchmarks/equilibrium.py                               # the table, half an hour
    python benchmarks/equilibrium.py --only "LBEN 80*" --json FILE --plot FILE.svg
    python benchmarks/equilibrium.py --target 1e-4                 # one error only
    python benchmarks/equilibrium.py --only "LBEN 2000*"           # named rows only, also "* ch *"
    python benchmarks/equilibrium.py --device cuda --batch 1024 --only "* [25]00*"
    python benchmarks/equilibrium.py --check                       # is the textbook right?
    pip install numba                                              # which ours uses if it is there
    NUMBA_DISABLE_JIT=1 python benchmarks/equilibrium.py           # but not here
    pip install --no-deps torchdeq                                 # for its rows

Every method solves the same batch of smooth random images. Its tolerance is lowered until the worst
sample of the batch has ‖z - z*‖ / ‖z*‖ ≤ target; z* is found in float64 by Newton's method for the
A and the drive that the method computed in float32 (convolutions: by splitting, to 1e-12). Then
forward and backward to all weights are timed in turn in one process, the weights being moved by
their last bit before each pass so that nothing can be kept from the one before; times are of the
processor (of the clock on a GPU), and a ratio is the median over the rounds of ours by theirs.
Methods that miss a target, or after all these passes miss it by a factor of 2, show the error that
they reached instead of a time. 'Gradient' is the error of ∂loss/∂x of the worst sample, at the
active set that its method found: ours must be within 10 times the target (1e-4 at best), the others
have one tolerance for both passes, as in the public code. Convolutions: forward, without torchdeq.
'First' is our first pass, in which the step is chosen, as it is now and then in training.

Methods: 'ours' is the layer in training. 'floor' is A and its gradient, one inverse, our number of
products and those with B and C. 'α = 1' is Peaceman-Rachford splitting as the public code of MON
and LBEN has it, 'α tuned' the same with the power of two that needs fewest iterations, 'forward
step' NEMON's own method. See `equilibrium_textbook.py`. Random weights are scaled to the
conditioning κ = L/m, and the m in the Λ-metric, of layers trained on MNIST; 'LBEN 80 γ=1' is a
really trained one where SDPLIP_NETS names the folder of networks. Peak memory is as in `layers.py`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import math
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from equilibrium_cases import (
    CLASSES,
    INPUTS,
    OURS,
    Bench,
    Case,
    cases,
    condition,
    conv,
    lben,
    mon,
    nemon,
)
from equilibrium_textbook import (
    Conv,
    Dense,
    Floor,
    ForwardStep,
    Textbook,
    TorchDEQ,
    exact,
    has_torchdeq,
    worst,
)
from layers import _memory, machine

from sdplip.equilibrium import Circulant
from sdplip.equilibrium.compiled import serves
from sdplip.layers import NEMONLinear


def measure(case: Case, arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    """The rows of one case."""
    bench = Bench.of(case, arguments.batch, device)
    makers, (m, most) = bench.methods(), condition(bench.layer)
    rows = []
    for target in arguments.target or case.targets:
        found = {name: bench.reach(make, target) for name, make in makers.items()}
        if found[OURS][0] is not None and not case.side:
            floor = Floor(bench.weights, found[OURS][0].steps)
            found["floor"] = (floor, math.nan, math.nan)
        modules = {name: entry[0] for name, entry in found.items() if entry[0] is not None}
        times = timed(bench, modules, arguments.rounds, arguments.budget)
        for name, (module, error, slope) in found.items():
            if module is not None and name != "floor":
                error, slope = bench.errors(module)
                if error > 2 * target:  # what it learned in the passes since has made it wrong
                    module = None
            limit = case.limits.get(target, {}).get(name)
            row = {"case": case.name, "kappa": most / m, "m": m, "target": target, "method": name}
            row |= {"error": error, "gradient_error": slope, "limit": limit, "reached": False}
            rows.append(row | {"missed": limit is not None and modules.get(OURS) is None})
            if module is None:
                continue
            ratios = [
                sum(a) / sum(b) for a, b in zip(times.get(OURS, []), times[name], strict=False)
            ]
            ratio = statistics.median(ratios) if ratios else math.nan
            forward, backward = (1e3 * statistics.median(t) for t in zip(*times[name], strict=True))
            rows[-1] |= {
                "reached": True,
                "forward_ms": forward,
                "backward_ms": backward,
                "steps": module.steps,
                "tol": getattr(module, "tol", None),
                "first_ms": 1e3 * getattr(module, "first", math.nan),
                "memory_mb": _memory(module, bench.x, device),
                "ours_by_this": ratio,
                "missed": limit is not None and not ratio <= limit,
            }
    return rows


def timed(bench: Bench, modules: dict[str, Any], rounds: int, budget: float) -> dict[str, list]:
    """Seconds forward and backward, in turn; a slow method takes part until its budget is spent."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in modules}
    for turn in range(rounds + 1):
        for name, module in modules.items():
            if len(times[name]) < 2 or sum(map(sum, times[name])) < budget:
                parameters = list(module.parameters())
                kept = [p.detach().clone() for p in parameters]
                with torch.no_grad():
                    for p in parameters:
                        p.mul_(1 + (-1) ** turn * 2.0**-23)
                times[name].append(bench.run(module))
                with torch.no_grad():
                    for p, value in zip(parameters, kept, strict=True):
                        p.copy_(value)
    return {name: seconds[1:] for name, seconds in times.items()}


def check() -> None:
    """The textbook against Newton's method and against gradients of the exact equilibrium."""
    torch.manual_seed(0)
    x, g = torch.randn(8, INPUTS).double(), torch.randn(8, CLASSES).double()
    for layer in (mon(20), lben(20, 1.0, 12, 1.86), nemon(20, 3.0, 3.0)):
        weights = Dense(layer).double()
        with torch.no_grad():
            own = layer.witness()["A"].double()
            apart = float((weights.A() - own).abs().max() / own.abs().max())
            assert apart < 2e-5, apart
        A, v = weights.A(), weights.drive(x)
        z = exact(A.detach(), v.detach(), torch.zeros_like(v.detach()))
        rows = []
        for drive, row in zip(v, z, strict=True):
            inner = torch.diag((row > 0).double())
            rows.append(torch.linalg.solve(torch.eye(len(A)).double() - inner @ A, inner @ drive))
        weights.read(torch.stack(rows)).backward(g)
        true = {
            name: p.grad.clone() for name, p in weights.named_parameters() if p.grad is not None
        }
        star = 1 / (1 - float(A.detach().diagonal().min()))
        networks = [Textbook(weights, 1.0, 1e-13), Textbook(weights, 0.25, 1e-13)]
        if isinstance(layer, NEMONLinear):
            networks.append(ForwardStep(weights, star, 1e-13))
        if has_torchdeq():
            step = 1 / condition(layer)[1]
            networks += [TorchDEQ(weights, solver, step, 1e-12) for solver in TorchDEQ.LIMITS]
        for network in networks:
            weights.zero_grad(set_to_none=True)
            network(x).backward(g)
            gradients = {k: p.grad for k, p in weights.named_parameters() if p.grad is not None}
            name, rtol = type(network).__name__, 1e-3 if isinstance(network, TorchDEQ) else 1e-8
            error = worst(network.z, z)
            apart = max(float((gradients[k] - true[k]).norm() / true[k].norm()) for k in true)
            print(f"{type(layer).__name__} {name} {network.steps}: {error:.1e}, {apart:.1e}")
            assert gradients.keys() == true.keys() and error < rtol and apart < rtol, name
    layer = conv(3)
    weights, z = Conv(layer, 30).double(), torch.randn(2, 3, 30, 30).double()
    for transpose in (False, True):
        moved = 1.5 * z - 0.5 * weights.multiply(z, transpose)
        torch.testing.assert_close(weights.apply(weights.inverse(0.5), moved, transpose), z)
    A = Circulant(layer.witness((30, 30))["A"], (30, 30)).to(torch.float64)
    rows = A.plus(torch.zeros_like(z.flatten(1)), z.flatten(1)).view_as(z)
    torch.testing.assert_close(rows, weights.multiply(z), rtol=0, atol=1e-4)
    x = torch.randn(2, 1, 30, 30)
    network, layer.tol = Textbook(weights, 1.0, 1e-12), 1e-6
    y = network(x.double()).float()
    torch.testing.assert_close(y, layer(x).flatten(1), rtol=1e-4, atol=1e-4)


def plot(rows: list[dict], path: Path) -> None:
    """Error of the worst sample against time, a panel per case and a line per method."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot, ticker

    names = list(dict.fromkeys(row["case"] for row in rows))
    columns = min(3, len(names))
    size = (5 * columns, 4 * math.ceil(len(names) / columns))
    figure, panels = pyplot.subplots(
        math.ceil(len(names) / columns), columns, figsize=size, squeeze=False, layout="constrained"
    )
    for panel in panels.flat[len(names) :]:
        panel.remove()
    for name, panel in zip(names, panels.flat, strict=False):
        lines: dict[str, list[dict]] = {}
        for row in rows:
            if row["case"] == name and row["reached"] and row["method"] != "floor":
                lines.setdefault(row["method"], []).append(row)
        for method, points in lines.items():
            total = [row["forward_ms"] + row["backward_ms"] for row in points]
            panel.loglog(total, [row["error"] for row in points], marker="o", label=method)
        panel.set(title=name, xlabel="forward + backward, ms", ylabel="error of the worst sample")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.legend(fontsize="small")
    figure.savefig(path)


def main() -> int:
    """Measure, print the table, write JSON and plot; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description="Equilibrium solvers at equal true error.")
    parser.add_argument("--only", default="*", help="names of cases, e.g. 'LBEN*'")
    parser.add_argument("--target", type=float, action="append", help="instead of every case's own")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=20, help="seconds per method and target")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an SVG of error against time")
    parser.add_argument("--check", action="store_true", help="test the textbook instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.check:
        check()
        return 0
    device = torch.device(arguments.device)
    print(
        f"torch {torch.__version__}, {machine(device)}, batch {arguments.batch}, "
        f"{arguments.rounds} rounds, {engine()}\n"
    )
    print("| case | target | method | ms | steps | worst | gradient | MB | ours / it | limit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for case in cases():
        if case.named and arguments.only == "*":
            continue
        if fnmatch.fnmatch(case.name, arguments.only):
            rows += (new := measure(case, arguments, device))
            print("\n".join(map(line, new)), flush=True)
    if arguments.plot is not None:
        plot(rows, arguments.plot)
    if arguments.json is not None:
        plain = [{k: None if v == math.inf or v != v else v for k, v in r.items()} for r in rows]
        document = {"torch": torch.__version__, "machine": machine(device), "rows": plain}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any(row["missed"] for row in rows))


def engine() -> str:
    """What may compute 'ours' of up to 128 units."""
    if serves(1, [torch.zeros(1)]):
        return f"small layers compiled by numba {version('numba')}"
    return "nothing compiled"


def line(row: dict) -> str:
    start = f"| {row['case']}, κ {row['kappa']:.0f} | {row['target']:g} | {row['method']} |"
    missed = " MISSED" if row["missed"] else ""
    limit = "" if row["limit"] is None else f"≤ {row['limit']:.3g}{missed}"
    if not row["reached"]:
        least = "diverged" if math.isinf(row["error"]) else f"not reached: {row['error']:.1e}"
        return f"{start} – | – | {least} | – | – | – | {limit} |"
    times = f"{row['forward_ms']:.2f} + {row['backward_ms']:.2f}"
    if row["method"] == OURS:
        times += f" (first {row['first_ms']:.0f})"
    steps = "/".join(map(str, row["steps"]))
    memory = "?" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
    errors = " | ".join(f"{row[k]:.1e}" for k in ("error", "gradient_error")).replace("nan", "–")
    return (
        f"{start} {times} | {steps} | {errors} | {memory} | {row['ours_by_this']:.3g} | {limit} |"
    )


if __name__ == "__main__":
    sys.exit(main())
