"""Calls to MLflow that are made again when the store is away for a moment: a locked database, a lost connection, an answer of 5xx or 429.

Anything else, a request that the store refuses among it, fails the first time. The pauses come to 4 s.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

T = TypeVar("T")

PAUSES_S = (0.2, 1.0, 3.0)  # between tries
STORE_ERRORS = (MlflowException, RequestException, SQLAlchemyError, OSError)  # what a call to a store may end in, bugs apart


def transient(error: Exception) -> bool:
    """Whether the same call may work a moment later."""
    if isinstance(error, MlflowException):
        return _may_pass(error.get_http_status_code())
    if isinstance(error, RequestException):
        return error.response is None or _may_pass(error.response.status_code)
    return isinstance(error, ConnectionError | TimeoutError | OperationalError)


def again(task: Callable[[], T], pauses: tuple[float, ...] | None = None) -> T:
    """What `task` gives, tried again after each pause while it fails as transient() says. Raises its last error."""
    for pause in PAUSES_S if pauses is None else pauses:
        try:
            return task()
        except Exception as error:
            if not transient(error):
                raise
        time.sleep(pause)
    return task()


def reason(error: Exception) -> str:
    """An error in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0] if isinstance(error, MlflowException) else f"{type(error).__name__}: {error}".splitlines()[0]


class Tries:
    """One thread's calls that may be lost. `lost` counts them, `why` is the last reason. Errors other than `passed_over` are raised."""

    def __init__(self, passed_over: tuple[type[Exception], ...] = STORE_ERRORS):
        self.lost, self.why = 0, ""
        self._passed_over, self._away = passed_over, False

    def make(self, task: Callable[[], object], size: int = 1) -> bool:
        """Whether `task` worked in the end; if not, it counts as `size`."""
        try:
            again(task, () if self._away else None)  # after a loss one try each, until one works: a close must not take hours
        except self._passed_over as error:
            self._away = self._away or transient(error)
            self.lost, self.why = self.lost + size, reason(error)
            return False
        self._away = False
        return True


def _may_pass(status: int) -> bool:
    return status >= 500 or status == 429
