"""JSON as every file and every command writes it."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(document: Any) -> str:
    """JSON text; NaN and infinities become null, because JSON has no word for them."""
    return json.dumps(_finite(document), indent=2, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
