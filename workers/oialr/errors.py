"""The one exception of this package that means: what was asked for cannot be done."""


class OIALRError(ValueError):
    """A setting, a model or an optimiser that OIALR cannot work with, and why."""
