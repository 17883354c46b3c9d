"""The errors that fipo raises: each names the value, the expectation and the remedy in one sentence."""


class FIPOError(Exception):
    """Base of every error that fipo raises on purpose."""


class InvalidParameterError(FIPOError, ValueError):
    """A setting has a value outside its range, or two settings contradict each other."""


class InvalidInputError(FIPOError, ValueError):
    """A tensor does not have the shape, dtype or device that the function documents."""


class DataError(FIPOError, ValueError):
    """A dataset, a file or a model cannot be used as asked."""
