"""What each request passes before its route and after it: who asks, how often, and the line in the audit log."""

import time

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forge.errors import ForgeError
from forge.serving.http import auth
from forge.serving.http.audit import Record
from forge.serving.http.faults import Gone, refusal
from forge.serving.http.limits import Buckets
from forge.serving.http.service import Service

_OPEN = "/health"
_LEFT = 499  # nginx's number for a client that closed the connection


class Gate:
    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service
        self._buckets = Buckets(service.limits.rate, service.limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == _OPEN:
            await self._app(scope, receive, send)
            return
        request, started = Request(scope), time.monotonic()
        record = Record(request.client.host if request.client else "", scope["method"], scope["path"][:200])
        request.state.record = record

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = record.status or message["status"]
            await send(message)

        try:
            self._admit(request, record)
            await self._app(scope, receive, noted)
        except ForgeError as error:
            told = refusal(error)
            record.error = told.kind
            await told.response()(scope, receive, noted)
        except Gone:
            record.status = _LEFT
        except BaseException:
            record.status = record.status or 500
            raise
        finally:
            record.seconds = time.monotonic() - started
            self._service.metrics.request(_template(scope), record.model, record.status)
            self._service.audit.add(record)

    def _admit(self, request: Request, record: Record) -> None:
        """Wrong tokens count against their address, so that they can't be guessed fast."""
        tokens = self._service.tokens
        holder = tokens.holder(request.headers.get("authorization"))
        record.client = holder or record.client
        self._buckets.take(record.client)
        if tokens and not holder:
            raise auth.unknown()
        if not tokens:
            auth.require_local_name(request.headers.get("host"))


def _template(scope: Scope) -> str:
    """The route as it is written, so that paths made up by clients make no metric each."""
    return getattr(scope.get("route"), "path", "none")
