"""What a client is told when it gets no answer: an HTTP status and OpenAI's error object, with one sentence and no stack trace."""

import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from forge.errors import ForgeError, ServingError
from forge.serving.faults import Cancelled, ModelFailed, PromptTooLong, ShuttingDown, TimedOut

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
_STATUS: dict[type[ForgeError], tuple[int, str | None]] = {
    PromptTooLong: (400, "context_length_exceeded"),
    TimedOut: (504, "timed_out"),
    ShuttingDown: (503, "shutting_down"),
    ModelFailed: (500, "model_failed"),
    Cancelled: (503, "shutting_down"),  # only a server that ends cancels a request whose client still waits
}


class Refusal(ServingError):
    """A status of 4xx or 5xx, and the sentence that goes with it."""

    def __init__(
        self, status: int, sentence: str, code: str | None = None, param: str | None = None, headers: Mapping[str, str] | None = None
    ):
        super().__init__(sentence)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})
        self.type = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")

    @property
    def kind(self) -> str:
        """What a log may hold: the sentence may quote a prompt."""
        return self.code or self.type

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


class Gone(Exception):
    """The client closed the connection."""


def refusal(error: ForgeError) -> Refusal:
    """The refusal that stands for a user's mistake. A key that its sentence begins with, in backquotes, becomes `param`."""
    if isinstance(error, Refusal):
        return error
    status, code = next((found for kind, found in _STATUS.items() if isinstance(error, kind)), (400, None))
    named = re.match(r"(?:unknown key )?`([\w.]+)`", str(error))
    return Refusal(status, str(error), code, named[1] if named else None)


def busy(sentence: str, wait_s: float) -> Refusal:
    """429 with Retry-After, in whole seconds from 1 to 60."""
    wait = min(60, max(1, math.ceil(wait_s)))
    return Refusal(429, f"{sentence}: try again in {wait} s", "rate_limit_exceeded", headers={"Retry-After": str(wait)})
