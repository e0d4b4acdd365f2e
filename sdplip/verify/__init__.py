"""From a network to its tightest bound, and from a certificate back to the proof."""

from .bound import lipschitz, norm_product
from .certificate import Certificate, as_system, check
from .lower import lower_bound

__all__ = ["Certificate", "as_system", "check", "lipschitz", "lower_bound", "norm_product"]
