"""Time of `sdplip.lipschitz` by solver, side by side on the same random perceptrons.

    python benchmarks/verify.py            # a table of seconds, ratios and relative excess

Each row draws one network with weights N(0, 1/n_in); a solver is left out above the order where it
takes minutes. The bound is the proven one, whatever the solver said.
"""

import argparse
import itertools
import time

import numpy as np

from sdplip import System, lipschitz

LIMITS = {"interior": 10**9, "SCS": 200, "CLARABEL": 60}


def network(sizes: tuple[int, ...]) -> System:
    rng = np.random.default_rng(0)
    pairs = itertools.pairwise(sizes)
    return System.feedforward([rng.normal(size=(b, a)) / np.sqrt(a) for a, b in pairs])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3, help="take the best of so many runs")
    repeats = parser.parse_args().repeats
    lipschitz(network((2, 2, 1)), solver="CLARABEL")  # imports are not what is measured
    print(f"{'network':<22}{'solver':<10}{'seconds':>9}{'ratio':>8}{'bound':>12}{'excess':>10}")
    for sizes in [(16, 24, 4), (24, 32, 4), (64, 64, 10), (64, 256, 10), (32, *[32] * 4, 10)]:
        system = network(sizes)
        order = system.inputs + system.units
        first: tuple[float, float] | None = None
        for solver, limit in LIMITS.items():
            if order > limit:
                continue
            seconds = []
            for _ in range(repeats):
                began = time.perf_counter()
                certificate = lipschitz(system, solver=solver, lower=False)
                seconds.append(time.perf_counter() - began)
            first = first or (min(seconds), certificate.bound)
            ratio, excess = min(seconds) / first[0], certificate.bound / first[1] - 1
            name = "-".join(map(str, sizes))
            print(
                f"{name:<22}{solver:<10}{min(seconds):>9.3f}{ratio:>8.1f}"
                f"{certificate.bound:>12.6f}{excess:>10.1e}"
            )


if __name__ == "__main__":
    main()
