"""Why a request got no answer. A server tells them apart by their class."""

from forge.errors import ServingError


class PromptTooLong(ServingError):
    """The prompt fills the model's context, or more."""


class Cancelled(ServingError):
    """The caller took the request back."""


class TimedOut(ServingError):
    """The request's time limit passed."""


class ShuttingDown(ServingError):
    """The model is being closed, or has been."""


class ModelFailed(ServingError):
    """Not the request's fault: numbers that are not finite, or no memory."""
