"""From a network to its tightest bound, and from a certificate back to the proof."""

from .bound import lipschitz, norm_product
from .certificate import Certificate, check
from .descent import chain_bound
from .local import restrict
from .lower import lower_bound
from .margins import MarginBounds, margin_bounds
from .promised import promise
from .region import Region
from .subject import as_system

__all__ = [
    "Certificate",
    "MarginBounds",
    "Region",
    "as_system",
    "chain_bound",
    "check",
    "lipschitz",
    "lower_bound",
    "margin_bounds",
    "norm_product",
    "promise",
    "restrict",
]
