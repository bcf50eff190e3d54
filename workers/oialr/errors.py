"""The exceptions of this package: what was asked for cannot be done."""


class OIALRError(ValueError):
    """A setting, a model or an optimiser that OIALR cannot work with, and why."""


class NotFiniteError(OIALRError):
    """A weight to decompose holds NaN or infinity: the training has diverged."""
