"""Every layer against torch.nn, against its own floor, and against other packages.

    python benchmarks/layers.py                        # the table, minutes
    python benchmarks/layers.py --only "sll*" --json FILE
    pip install orthogonium deel-torchlip              # for the rows that compare with them

Two modules are timed in turn in one process; a ratio is the median over the rounds of the one's
time by the other's, so that other work on the machine hits both. A step is zero_grad, forward,
backward to weights and input, and Adam; 'bare' leaves Adam out; eval is forward without gradients.
'frozen' is the layer itself with its closed form computed once: the floor of its shape, and 1 - 1 /
ratio is the share of the closed form. Peak memory is what two steps add to the resident memory
(Linux, CPU) or allocate (CUDA).
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import fnmatch
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdplip.layers import CONVOLUTIONS, LAYERS, Layer
from sdplip.train.data import Splits
from sdplip.train.experiments.presets import find_preset
from sdplip.train.models import build

Make = Callable[[], nn.Module]
DENSE = {"2048, B 256": (256, 2048), "2880, B 64": (64, 2880)}
UNITS, BATCH = 2048, 64
IMAGES = {(32, 32): 1.1, (64, 32): 1.1, (256, 8): 1.6, (512, 4): 2.2}
"""Channels and side of the images, and the limit for SLL against its frozen twin."""

MODES = ("step", "bare", "eval")


@dataclass(frozen=True)
class Case:
    """`module` against `other`, or against its frozen twin where there is none, on random input.

    `limits` are the ratios to stay below, by mode.
    """

    name: str
    module: Make
    shape: tuple[int, ...]
    against: str = "frozen"
    other: Make | None = None
    limits: Mapping[str, float] = field(default_factory=dict)


def frozen(module: nn.Module) -> nn.Module:
    """A copy whose layers keep the closed form that they have now."""
    twin = copy.deepcopy(module)
    for layer in twin.modules():
        if isinstance(layer, Layer):
            with torch.no_grad():
                tensors = layer._tensors()
            layer._current = lambda tensors=tensors: tensors
    return twin


def cases() -> list[Case]:
    """All rows, in the order of the table."""
    rows = []
    for name, cls in LAYERS.items():
        for label, shape in DENSE.items():
            if hasattr(cls, "solve") or (shape[1] != UNITS and name != "sll"):
                continue
            make: Make = functools.partial(cls, shape[1], UNITS)
            linear = functools.partial(nn.Linear, shape[1], UNITS)
            rows.append(
                Case(
                    f"{name} {label}",
                    make,
                    shape,
                    "nn.Linear",
                    linear,
                    LIMITS.get((name, label), {}),
                )
            )
            rows.append(Case(f"{name} {label}", make, shape))
    for name, cls in CONVOLUTIONS.items():
        for (channels, side), limit in IMAGES.items():
            if hasattr(cls, "solve"):
                continue
            label, shape = f"{name} {channels} ch {side}x{side}", (BATCH, channels, side, side)
            make = functools.partial(cls, channels, channels, 3)
            plain = functools.partial(nn.Conv2d, channels, channels, 3, padding=1)
            small = channels <= 64
            rows.append(Case(label, make, shape, limits={"bare": limit} if name == "sll" else {}))
            limits = {"bare": 1.1} if name == "aol" and small else {}
            rows.append(Case(label, make, shape, "nn.Conv2d", plain, limits))
    for row in list(rows):
        if row.name in ROUNDED and row.other is None:
            make = functools.partial(row.module, products="bfloat16")
            rows.append(Case(f"{row.name}, bfloat16", make, row.shape))
    for label, products in (("", "exact"), (", bfloat16", "bfloat16")):
        network = functools.partial(small_network, products)
        shape = (BATCH, 3, 32, 32)
        rows.append(Case(f"network sll-small{label}", network, shape, limits={"bare": 1.8}))
    return rows + peers()


LIMITS = {
    ("sll", "2048, B 256"): {"step": 6.0, "eval": 2.2},
    ("sll", "2880, B 64"): {"step": 13.0},
    ("orthogonal", "2048, B 256"): {"step": 12.0, "eval": 1.1},
}


ROUNDED = [f"sll {label}" for label in DENSE]
ROUNDED += [f"{name} {size}" for name in ("aol", "sll") for size in ("256 ch 8x8", "512 ch 4x4")]
"""Also measured with products in bfloat16."""


def small_network(products: str) -> nn.Module:
    """The preset sll-small for CIFAR-10."""
    images = torch.rand(1, 3, 32, 32)
    data = (images, torch.zeros(1, dtype=torch.int64))
    config = find_preset("sll-small").config(Splits(data, data, 10, (3, 32, 32), "cifar10"))
    return build(replace(config.model, products=products))


def peers() -> list[Case]:
    """Ours against the layers of other packages, as far as these are installed."""
    rows = []
    partial = functools.partial
    channels, side = 64, 32
    images, vectors = (BATCH, channels, side, side), DENSE["2048, B 256"]
    if find_spec("orthogonium"):
        from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
        from orthogonium.layers.conv.AOL.aol import AOLConv2D
        from orthogonium.layers.conv.SLL.sll_layer import (
            SDPBasedLipschitzDense,
            SDPBasedLipschitzResBlock,
        )
        from orthogonium.layers.linear import OrthoLinear

        blocks = partial(SDPBasedLipschitzResBlock, channels, channels, 3)
        found: list[tuple[str, tuple[int, ...], Make]] = [
            ("orthogonal", vectors, partial(OrthoLinear, UNITS, UNITS)),
            ("sll", vectors, partial(SDPBasedLipschitzDense, UNITS, UNITS)),
            ("orthogonal", images, partial(AdaptiveOrthoConv2d, channels, channels, 3)),
            ("aol", images, partial(AOLConv2D, channels, channels, 3, padding=1)),
            ("sll", images, blocks),
        ]
        rows += [_against("orthogonium", *entry) for entry in found]
    if find_spec("deel") and find_spec("deel.torchlip"):
        from deel import torchlip

        found = [
            ("spectral", vectors, partial(torchlip.SpectralLinear, UNITS, UNITS)),
            (
                "spectral",
                images,
                partial(torchlip.SpectralConv2d, channels, channels, 3, padding=1),
            ),
        ]
        rows += [_against("deel-torchlip", *entry) for entry in found]
    return rows


def _against(package: str, family: str, shape: tuple[int, ...], other: Make) -> Case:
    if len(shape) == 2:
        return Case(
            f"{family} 2048, B 256",
            functools.partial(LAYERS[family], UNITS, UNITS),
            shape,
            package,
            other,
        )
    label = f"{family} {shape[1]} ch {shape[2]}x{shape[3]}"
    make = functools.partial(CONVOLUTIONS[family], shape[1], shape[1], 3)
    return Case(label, make, shape, package, other)


def measure(case: Case, rounds: int, device: torch.device) -> dict[str, Any]:
    """One row of the table: milliseconds, ratios and memory."""
    torch.manual_seed(0)
    module = case.module().to(device)
    other = (frozen(module) if case.other is None else case.other()).to(device)
    x = torch.randn(case.shape, device=device, requires_grad=True)
    row: dict[str, Any] = {"case": case.name, "against": case.against}
    for mode in MODES:
        pair = [_runner(m, x, mode) for m in (module, other)]
        times = [[_seconds(run, device) for run in pair] for _ in range(rounds + 1)][1:]
        row[f"{mode}_ms"] = [1e3 * statistics.median(t) for t in zip(*times, strict=True)]
        row[mode] = statistics.median(a / b for a, b in times)
    row["memory_mb"] = [_memory(m, x, device) for m in (module, other)]
    row["limits"] = dict(case.limits)
    row["missed"] = [mode for mode, limit in case.limits.items() if row[mode] > limit]
    return row


def _runner(module: nn.Module, x: Tensor, mode: str) -> Callable[[], object]:
    module.train(mode != "eval")
    if mode == "eval":

        def forward() -> None:
            with torch.no_grad():
                module(x)

        return forward
    parameters = [p for p in module.parameters() if p.requires_grad]
    adam = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        adam.zero_grad(set_to_none=True)
        x.grad = None
        module(x).sum().backward()
        if mode == "step":
            adam.step()

    return step


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _memory(module: nn.Module, x: Tensor, device: torch.device) -> float | None:
    """MB that two steps need at their peak."""
    run = _runner(module, x, "bare")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run(), run()
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    for parameter in module.parameters():
        parameter.grad = None
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps would hide what is needed
    reset.write_text("5")  # the high-water mark starts over
    before = _resident(status)
    run(), run()
    return (_resident(status, "VmHWM") - before) / 1e3


def _resident(status: Path, name: str = "VmRSS") -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return f"{cpu}, {torch.get_num_threads()} threads"


def main() -> int:
    """Measure, print the table, write the JSON; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description="Cost of the layers, as ratios.")
    parser.add_argument("--only", default="*", help="names of rows, e.g. 'sll*'")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {machine(device)}, {arguments.rounds} rounds\n")
    print("| layer | against | step | bare | eval | ms (step, bare, eval) | memory MB | limit |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for case in cases():
        if fnmatch.fnmatch(case.name, arguments.only):
            rows.append(measure(case, arguments.rounds, device))
            print(_line(rows[-1]), flush=True)
    if arguments.json is not None:
        document = {"torch": torch.__version__, "machine": machine(device), "rows": rows}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return int(any(row["missed"] for row in rows))


def _line(row: dict[str, Any]) -> str:
    ratios = " | ".join(f"{row[mode]:.2f}" for mode in MODES)
    times = ", ".join("/".join(f"{ms:.1f}" for ms in row[f"{mode}_ms"]) for mode in MODES)
    memory = "/".join("?" if mb is None else f"{mb:.0f}" for mb in row["memory_mb"])
    limits = ", ".join(
        f"{mode} {limit:g}{' MISSED' if mode in row['missed'] else ''}"
        for mode, limit in row["limits"].items()
    )
    return f"| {row['case']} | {row['against']} | {ratios} | {times} | {memory} | {limits} |"


if __name__ == "__main__":
    sys.exit(main())
