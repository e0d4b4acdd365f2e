"""Train families of layers alike, one of your own among them, and read the answer off one page.

pip install ".[train]"
python examples/train_compare.py
"""

from pathlib import Path

from sdplip.derive.library import find
from sdplip.train import load, override, preset
from sdplip.train.models import FAMILIES
from sdplip.train.reporting.page import report
from sdplip.train.runs import compare

# 1. A layer that the package does not have: derived from the condition, see derive_a_layer.py. Any
# class with the constructor of a family and its `lipschitz` and `system()` will do.
_, (reflection, *_) = find("reflection")
FAMILIES["reflection"] = reflection.layer("ReflectionLinear")

# 2. The same recipe for all; what differs is the layer.
digits = load("digits")
configs = [
    override(preset(layer, digits), width=24, epochs=6, images=200, radii=(0.1, 0.25, 0.5))
    for layer in ("sll", "lben", "reflection", "unconstrained")
]
result = compare(configs, digits, Path("runs"))

# 3. Every row holds what was promised, proven and found: certified ≤ attacked ≤ clean.
print(f"{'layer':<14}{'clean':>7}{'certified/attacked at 0.25':>30}{'sampled ≤ verified':>22}")
for row in result["rows"]:
    shares = f"{row['certified'][1]:.1%}/{row['attacked'][1]:.1%}"
    constants = f"{row['sampled']:.3f} ≤ {row['verified']:.3f}"
    print(f"{row['layer']:<14}{row['clean']:>7.1%}{shares:>30}{constants:>22}")
assert not result["violations"]

# 4. The page: tables, curves, tightness, singular values; also: sdplip report runs.
Path("report.html").write_text(report([Path("runs")]), encoding="utf-8")
print("written report.html")
