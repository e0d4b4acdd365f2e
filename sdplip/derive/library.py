"""Derivations in files: those that come with the package, and a user's own."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import traceback
from pathlib import Path

from ..errors import InvalidInput
from .derivation import Derivation
from .theorem import Theorem

PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """The derivations that come with sdplip: in the package, or beside it in a checkout.

    Raises:
        InvalidInput: neither is there.
    """
    inside, beside = PACKAGE / "derivations", PACKAGE.parent / "derivations"
    if inside.is_dir():
        return inside
    if beside.is_dir() and (PACKAGE.parent / "pyproject.toml").is_file():
        return beside
    raise InvalidInput(f"{inside} is missing. Install sdplip anew, or give the path of a file.")


def files() -> dict[str, Path]:
    """The files of the folder by name."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if path.stem[0] != "_"}


def find(target: str) -> tuple[Path, list[Derivation | Theorem]]:
    """The derivations meant, and their file.

    Args:
        target: the path of a Python file, the name of a file in the folder, or of one derivation
            in it.

    Raises:
        InvalidInput: there is none; see also `load`.
    """
    path = Path(target)
    if path.suffix == ".py" or path.name != target:
        if not path.is_file():
            raise InvalidInput(f"{path} is no file. {_known()}")
        return path.resolve(), load(path)
    here = files()
    if target in here:
        return here[target].resolve(), load(here[target])
    for path in here.values():
        if chosen := [d for d in load(path) if d.name == target]:
            return path.resolve(), chosen
    raise InvalidInput(f"There is no derivation {target!r}. {_known()}")


def _known() -> str:
    return f"Give the path of a .py file, or one of {', '.join(files())}."


def load(path: str | Path) -> list[Derivation | Theorem]:
    """The derivations that a Python file defines; the file is run.

    Raises:
        InvalidInput: it cannot be run, or has neither `derivation` nor `derivations`.
    """
    path = Path(path).resolve()
    name = f"sdplip_derivation_{path.stem}_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidInput(f"{path} is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))
    try:
        # Standard output is for reports.
        with contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise blamed(error, path) from error
    finally:
        sys.path.remove(str(path.parent))
    several = getattr(module, "derivations", None)
    found = [getattr(module, "derivation", None)] if several is None else several
    if (
        not isinstance(found, list | tuple)
        or not found
        or not all(isinstance(d, Derivation | Theorem) for d in found)
    ):
        raise InvalidInput(
            f"{path} defines no derivation. Give it `derivation = Derivation(...)`, or "
            "`derivations = [...]` for several."
        )
    return list(found)


def blamed(error: BaseException, path: Path) -> InvalidInput:
    """The error of a file in one line, with the file's own line that led to it."""
    if isinstance(error, SystemExit):
        return InvalidInput(
            f'{path} ends the program. Put sys.exit(main(...)) under if __name__ == "__main__":.'
        )
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return InvalidInput(f"{path}, line {error.lineno}: {error.msg}. Correct the file.")
    said = " ".join(str(error).split()) or "no message"
    lines = lines_in(error, path)
    at = f", line {lines[-1]}" if lines else ""
    kind = "" if isinstance(error, InvalidInput) else f"{type(error).__name__}: "
    return InvalidInput(f"{path}{at}: {kind}{said}")


def lines_in(error: BaseException, path: Path) -> list[int]:
    """The lines of a file that were being run when the error was raised, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f.lineno for f in frames if f.filename == str(path) and f.lineno is not None]
