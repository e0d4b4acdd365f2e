"""Packages that only some of the work needs: the extras of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import InvalidInput


def need(what: str, *packages: str, extra: str) -> None:
    """Raise InvalidInput where one of the packages that `what` needs is not installed."""
    if missing := [name for name in packages if find_spec(name) is None]:
        raise InvalidInput(
            f"{what} needs {', '.join(missing)}. Install what is missing with: "
            f"pip install 'sdplip[{extra}]'"
        )
