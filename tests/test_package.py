"""The package as a whole: what an import loads, and in which direction modules depend."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import sdplip
from sdplip._extras import need
from sdplip.convolutional import Activate, Convolve
from sdplip.errors import InvalidInput

ROOT = Path(sdplip.__file__).parent
ORDER = [
    {"errors", "_arrays", "_tensors", "_page", "_engine", "_radii", "_extras", "_json", "_modes"},
    {"_backends", "_elementwise", "_smooth"},
    {"lmi"},
    {"conditions", "activations"},
    {"equilibrium"},
    {"_coupling", "system", "_modules", "_files", "_stages", "convolutional"},
    {"importing"},
    {"verify"},
    {"layers"},
    {"derive"},
    {"train"},
    {"cli"},
    {"__main__"},
]
FORBIDDEN = {("layers", "verify")}


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_import_loads_no_solver_no_symbols_no_trainer():
    heavy = ["cvxpy", "sympy", "lightning", "matplotlib", "sklearn", "torchvision", "rich"]
    code = f"import sdplip, sdplip.layers, sys; print([m for m in {heavy} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_import_is_cheap_beyond_torch():
    """By counting modules, not seconds: nothing but torch's own and ours."""
    code = (
        "import torch, numpy, sys; before = set(sys.modules); import sdplip; "
        "print([m for m in set(sys.modules) - before if not m.startswith('sdplip')])"
    )
    assert run(code).strip() == "[]"


def test_what_verifies_does_not_load_what_trains(tmp_path):
    sdplip.System.linear(np.eye(2)).save(tmp_path / "net.npz")
    code = (
        "import sys; from sdplip.cli import app; "
        f"app(['verify', {str(tmp_path / 'net.npz')!r}, '--json'], standalone_mode=False); "
        "print([m for m in sys.modules if m.startswith('sdplip.train')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]" and '"bound": 1.0' in done.stdout


def test_a_missing_package_is_named_with_an_extra_that_has_it():
    """Every extra that messages name is one of pyproject.toml, and holds what is asked for."""
    with pytest.raises(InvalidInput, match=r"needs no_such_package\..*sdplip\[ray\]"):
        need("this", "numpy", "no_such_package", extra="ray")
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    calls = [
        (call, path)
        for path in ROOT.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) == "need" and call.keywords
    ]
    assert len(calls) >= 5
    for call, path in calls:
        extra = {k.arg: ast.literal_eval(k.value) for k in call.keywords}["extra"]
        packages = str(project["optional-dependencies"][extra])
        for argument in call.args[1:]:
            if isinstance(argument, ast.Constant):
                assert argument.value.replace("sklearn", "scikit-learn") in packages, path


def test_what_users_print_fits_on_a_screen():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(200, 300)), rng.normal(size=(2, 200))]
    system = sdplip.System.feedforward(weights)
    box = sdplip.Region.box(np.zeros(300), np.ones(300))
    stages = (Convolve(np.ones((2, 1, 3, 3)), padding=1), Activate("relu"))
    shown = [system, box, sdplip.ConvSystem(stages, 1, (50, 50))]
    shown.append(sdplip.lipschitz(system, method="layerwise", lower=False, region=box))
    for value in shown:
        assert len(repr(value)) < 800
    assert "300" in repr(system) and "1x50x50 → 2x50x50" in repr(shown[2])


def test_everything_announced_exists():
    for name in sdplip.__all__:
        assert getattr(sdplip, name) is not None
    assert set(sdplip.__all__) <= set(dir(sdplip))


def part(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def test_imports_point_one_way():
    rank = {name: i for i, names in enumerate(ORDER) for name in names}
    for path in ROOT.rglob("*.py"):
        here = part(path)
        if here == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            base = path.parent
            for _ in range(node.level - 1):
                base = base.parent
            module = node.module.split(".") if node.module else []
            targets = [module] if module else [[a.name] for a in node.names]
            for target in targets:
                full = [*base.relative_to(ROOT).parts, *target]
                there = full[0] if full else "__init__"
                if there in ("__version__", "__init__") or there == here:
                    continue
                assert rank[there] <= rank[here], f"{path.relative_to(ROOT)} imports {there}"
                assert (here, there) not in FORBIDDEN


def test_no_module_is_long():
    lengths = {p.name: len(p.read_text().splitlines()) for p in ROOT.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 420} == {}
