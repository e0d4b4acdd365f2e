"""What sdplip raises; every message names the object, the value and the rule, then the remedy."""


class SdplipError(Exception):
    """Base class of all errors that sdplip raises on purpose."""


class InvalidInput(SdplipError, ValueError):
    """A value that nothing can start from: NaN, a slope range that is none, an unknown name."""


class ShapeError(InvalidInput):
    """An array whose shape does not fit the others."""


class NotConverged(SdplipError, RuntimeError):
    """An equilibrium solve that did not reach its tolerance."""


class NotWellPosed(SdplipError):
    """No multiplier shows that z = σ(Az + Bx + b) has exactly one solution, hence no bound."""


class CertificationError(SdplipError):
    """A bound that could not be established, or a certificate that does not hold."""


class NotConvergedWarning(UserWarning):
    """The training-time form of `NotConverged`."""


class UncheckedWarning(UserWarning):
    """An imported network that could not be compared with its original."""


class DerivationError(SdplipError):
    """A step of a derivation that is not valid; the message names the step and what it met.

    `steps` are those before it, where a statement raised it.
    """

    steps: tuple[object, ...] = ()
