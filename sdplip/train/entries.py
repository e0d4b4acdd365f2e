"""The entries of configuration dataclasses: checked, and as JSON values."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InvalidInput

LARGEST = 2**40
"""No integer of a configuration exceeds it: seeds are multiplied, and still fit 64 bits."""


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON values; the inverse of `read_config`."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def read_config(cls: type, values: object) -> Any:
    """A config dataclass from parsed JSON; every key known, every required one there."""
    if not isinstance(values, dict):
        raise InvalidInput(f"{cls.__name__}: expected a JSON object, got {type(values).__name__}.")
    known = {f.name for f in fields(cls)}
    if unknown := sorted(set(values) - known):
        raise InvalidInput(f"{cls.__name__}: unknown entries {', '.join(unknown)}.")
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**kept)
    except InvalidInput:
        raise
    except (TypeError, AttributeError, OverflowError, IndexError, ValueError) as error:
        raise InvalidInput(f"{cls.__name__}: {error}.") from error


def check_types(where: str, config: Any) -> None:
    """Raise InvalidInput, naming `where`, for an entry of another type than its annotation's.

    An integer is also a float, where one can hold it, but a boolean is no number.
    """
    for name, wanted in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if not _is_a(value, wanted):
            raise InvalidInput(
                f"{where}: {name} is {reprlib.repr(value)}, but must be {_in_words(wanted)}."
            )


def check_choices(where: str, config: Any, choices: Mapping[str, Sequence[str]]) -> None:
    """Raise InvalidInput for an entry that is none of its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise InvalidInput(
                f"{where}: {name} is {value!r}, but must be one of {', '.join(known)}."
            )


def check_least(where: str, config: Any, least: int, *names: str) -> None:
    """Raise InvalidInput for an integer below `least`, alone or in a list; None passes."""
    for name in names:
        value = getattr(config, name)
        if any(number is not None and number < least for number in _numbers(value)):
            rule = "hold integers" if isinstance(value, tuple) else "be an integer"
            raise InvalidInput(f"{where}: {name} is {value!r}, but must {rule} ≥ {least}.")


def check_finite(where: str, config: Any, *names: str, positive: bool = True) -> None:
    """Raise InvalidInput for a number, alone or in a list, that is not finite, or negative, or zero
    where it must be `positive`; None passes."""
    for name in names:
        for number in _numbers(getattr(config, name)):
            if number is not None and not (0 <= number < math.inf and (number or not positive)):
                rule = "positive" if positive else "not negative"
                raise InvalidInput(f"{where}: {name} is {number}, but must be finite and {rule}.")


def _numbers(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _is_a(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) is tuple:
        each = get_args(wanted)[0]
        return isinstance(value, tuple) and all(_is_a(entry, each) for entry in value)
    if get_args(wanted):
        return any(_is_a(value, one) for one in get_args(wanted))
    if wanted in (int, float) and isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, wanted)


def _in_words(wanted: Any) -> str:
    if get_origin(wanted) is tuple:
        return f"a list, each {_in_words(get_args(wanted)[0])}"
    if get_args(wanted):
        return ", or ".join(map(_in_words, get_args(wanted)))
    numbers = {int: "an integer of at most 2**40", float: "a number"}
    words = {**numbers, str: "a string", bool: "true or false", type(None): "null"}
    return words.get(wanted, str(wanted))
