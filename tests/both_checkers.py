"""A claim put before sdplip and before the independent checker."""

from dataclasses import replace

import pytest

from sdplip import CertificationError, check
from sdplip.verify import checker

PROVEN, NOT_PROVEN, UNREADABLE = 0, 1, 2
"""Exit codes of the independent checker."""


def write(folder, certificate, network):
    """The arguments of the independent checker."""
    certificate.save(folder / "c.json")
    network.save(folder / "m.npz")
    return [str(folder / "c.json"), str(folder / "m.npz")]


def assert_both(folder, certificate, network, bound, expected):
    """Both prove this bound with the certificate's multipliers, or both refuse it."""
    claim = replace(certificate, bound=bound, optimum=None)
    assert checker.main(write(folder, claim, network)) == expected
    if expected == PROVEN:
        check(claim, network)
    else:
        with pytest.raises(CertificationError):
            check(claim, network)
