"""Layers whose T may come from rounded products."""

from __future__ import annotations

from torch import Tensor

from ..errors import InvalidInput
from ._base import Layer
from ._state import pack, unpack

PRODUCTS = ("exact", "bfloat16")


class Dominated(Layer):
    """A layer with T from `closed_forms.dominated`.

    Attributes:
        products: how WᵀW is computed, "exact" or "bfloat16"; T ⪰ WᵀW for both.
    """

    products: str

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, products={self.products}"

    def set_extra_state(self, state: Tensor) -> None:
        # A state from before there was a choice does not mention it.
        found = {"products": "exact"} | unpack(type(self).__name__, state)
        super().set_extra_state(pack(found))

    def _options(self) -> dict[str, str | float]:
        return super()._options() | {"products": self.products}


def check_products(owner: str, products: str) -> str:
    if products not in PRODUCTS:
        raise InvalidInput(
            f"{owner}: products = {products!r}, but must be one of {', '.join(PRODUCTS)}."
        )
    return products
