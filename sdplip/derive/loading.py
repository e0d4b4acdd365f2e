"""Emitted source as a class of this process."""

from __future__ import annotations

import hashlib
import linecache
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..layers import Layer


def load(text: str, name: str) -> type[Layer]:
    """The class of an emitted module, importable within this process."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    known = sys.modules.get(f"sdplip_emitted_{name}_{digest}")
    if known is not None:
        # Two classes of one name could not both be pickled.
        return known.__dict__[name]
    module = types.ModuleType(f"sdplip_emitted_{name}_{digest}")
    path = f"<{module.__name__}>"
    # Tracebacks and inspect.getsource read the source from here.
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    sys.modules[module.__name__] = module
    exec(compile(text, path, "exec"), module.__dict__)
    return module.__dict__[name]
