"""The request's body -> an object, refused with a sentence where it is too large, too slow, too deep, or no JSON."""

import asyncio
import re
from typing import Any

from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request

from forge.serving.http.faults import Gone, Refusal
from forge.serving.http.limits import Limits

_LARGE = 32_768  # bytes that are read as JSON in the event loop; more in another thread
_BRACKETS = 100_000


async def read(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object that was sent. Raises Refusal, and Gone where the client left."""
    _require_json(request)
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    data = bytearray()
    try:
        async with asyncio.timeout(limits.read_s):
            async for part in request.stream():
                data += part
                if len(data) > limits.body_bytes:
                    raise _too_large(limits)
    except ClientDisconnect:
        raise Gone from None
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {limits.read_s:g} s: send it faster, or less of it") from None
    raw = bytes(data)
    found = _parse(raw) if len(raw) < _LARGE else await asyncio.to_thread(_parse, raw)
    if not isinstance(found, dict):
        raise Refusal(400, f"the body has to be a JSON object, not {_KINDS.get(type(found), 'null')}")
    return found


_KINDS: dict[type, str] = {list: "an array", str: "a text", int: "a number", float: "a number", bool: "true or false"}


def _require_json(request: Request) -> None:
    kind, _, rest = request.headers.get("content-type", "").lower().partition(";")
    if kind.strip() != "application/json":
        raise Refusal(415, f"send JSON with the header `Content-Type: application/json`, not {kind.strip()[:60] or 'without one'}")
    charset = re.search(r"charset=\"?([\w-]+)", rest)
    if charset and charset[1] not in ("utf-8", "utf8"):
        raise Refusal(415, f"send the JSON in UTF-8, not {charset[1][:60]}")
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise Refusal(415, f"send the body as it is, without Content-Encoding: {encoding[:60]}")


def _parse(raw: bytes) -> Any:
    if raw.count(b"[") + raw.count(b"{") > _BRACKETS:  # each an object to make, while nothing else in this process goes on
        raise Refusal(400, f"the body has more than {_BRACKETS:,} opening brackets: send less at a time")
    try:
        raw.decode("utf-8")
        return from_json(raw, allow_inf_nan=False)  # which goes no deeper than 200
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the body is no UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from error
    except ValueError as error:
        said = str(error).replace("recursion limit exceeded", "nested more than 200 deep")
        raise Refusal(400, f"the body is no JSON that can be read: {said}") from error


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the body is larger than {limits.body_bytes / 1e6:g} MB: send less at a time", "request_too_large")
