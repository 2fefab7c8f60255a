"""POST /v1/chat/completions and /v1/completions: one JSON object, or a stream of server-sent events."""

import asyncio
import json
import time

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from forge.errors import ServingError
from forge.serving import protocol
from forge.serving.contract import Completion
from forge.serving.faults import TimedOut
from forge.serving.http import body
from forge.serving.http.audit import Record
from forge.serving.http.call import Call, unless_gone
from forge.serving.http.faults import Gone, refusal
from forge.serving.http.metrics import Done
from forge.serving.http.models import Model
from forge.serving.http.service import Service

_EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_GRACE_S = 10  # for a client to take the last of an answer


class Generate:
    """The ASGI application of one route. Raises Refusal and other ForgeErrors, and Gone where the client left."""

    def __init__(self, service: Service, route: protocol.Route):
        self._service, self._route = service, route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, service = Request(scope, receive), self._service
        record: Record = request.state.record
        sent = await body.read(request, service.limits)
        if service.audit.prompts:
            record.body = sent
        asked = await asyncio.to_thread(protocol.parse, sent, self._route, service.mode)  # long where there are a hundred thousand mistakes
        model = service.models.find(asked.model)
        record.model = model.name
        with service.models.call(model, asked.jobs, asked.stream, service.metrics.typical_s(model.name)) as call:
            try:
                async with asyncio.timeout(service.limits.timeout_s + _GRACE_S):
                    if asked.stream:
                        await unless_gone(receive, self._stream(asked, model, call, record, send))
                        await send({"type": "http.response.body", "body": b""})
                    else:
                        completions = await unless_gone(receive, call.completions())
                        self._note(asked, call, model, record)
                        # Log-probabilities of many tokens take half a second.
                        answer = await asyncio.to_thread(protocol.answer, asked, completions, model.name, model.engine.format)
                        await JSONResponse(answer)(scope, receive, send)
            except TimeoutError:
                if record.status:
                    raise Gone from None  # it is there, but does not read
                raise TimedOut("not finished within the server's time limit, and the model is busy: try again later") from None

    async def _stream(self, asked: protocol.Request, model: Model, call: Call, record: Record, send: Send) -> None:
        """All but the end of the body. What goes wrong before the first token is raised, and so has a status; later it is an event."""
        chunks = protocol.Chunks(asked, model.name, model.engine.format)
        heard = await call.next()
        await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
        try:
            while heard:
                index, said = heard
                objects = chunks.end(index, said) if isinstance(said, Completion) else chunks.add(index, said)
                await _say(send, "".join(f"data: {json.dumps(each)}\n\n" for each in objects))
                heard = await call.next()
        except ServingError as error:
            told = refusal(error)
            record.error, record.status = told.kind, told.status
            await _say(send, f"data: {json.dumps(told.body())}\n\n")
            return
        self._note(asked, call, model, record)
        await _say(send, "data: [DONE]\n\n")

    def _note(self, asked: protocol.Request, call: Call, model: Model, record: Record) -> None:
        """As the client is told: a prompt counts once, however many choices it has."""
        usage, now = protocol.usage(asked, [call.ended[index] for index in sorted(call.ended)]), time.monotonic()
        record.prompt_tokens, record.completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        record.first_token_s = call.first_token - call.started if call.first_token else None
        done = Done(now, now - call.started, record.first_token_s, usage["completion_tokens"])
        self._service.metrics.answered(model.name, done, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"])


async def _say(send: Send, text: str) -> None:
    if text:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
