"""The other routes: which models there are, loading and unloading them, and how the server is."""

import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from forge.serving.http import body
from forge.serving.http.faults import Refusal
from forge.serving.http.metrics import process_gib
from forge.serving.http.models import Model, Source
from forge.serving.http.service import Service
from forge.serving.http.sources import REGISTERED

NAME = r"^[\w.:-]{1,64}$"
_STRICT = ConfigDict(extra="forbid", strict=True)
_Body = TypeVar("_Body", bound=BaseModel)


class _Load(BaseModel):
    model_config = _STRICT
    source: Annotated[str, Field(min_length=1, max_length=1000)]
    name: Annotated[str, Field(pattern=NAME)] | None = None
    adapter: Annotated[str, Field(min_length=1, max_length=1000)] | None = None


class _Unload(BaseModel):
    model_config = _STRICT
    name: str


def name_of(source: str) -> str:
    """What a model is called where nobody named it: as it is registered, or as its folder."""
    if source.startswith(REGISTERED):
        return re.split(r"[@/]", source.removeprefix(REGISTERED))[0]
    return source.rstrip("/").rpartition("/")[2]


def routes(service: Service) -> list[Route]:
    models, metrics, started = service.models, service.metrics, time.time()

    async def health(request: Request) -> Response:
        failed = models.failed()
        known = {"models": len(models.ready()), "loading": len(models.loading())}
        if failed:
            return JSONResponse({"status": "failed", "failed": failed, **known}, HTTPStatus.SERVICE_UNAVAILABLE)
        return JSONResponse({"status": "ok", **known})

    async def listed(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model.shown() for model in models.ready()]})

    async def one(request: Request) -> Response:
        model = models.find(request.path_params["id"])
        model.require_ready()
        return JSONResponse(model.shown())

    async def load(request: Request) -> Response:
        asked = _checked(_Load, await body.read(request, service.limits))
        source = service.allowed.check(asked.source)
        adapter = service.allowed.check(asked.adapter, "adapter_config.json") if asked.adapter else None
        model = await models.load(Source(asked.name or name_of(source), source, adapter))
        return JSONResponse(model.shown())

    async def unload(request: Request) -> Response:
        asked = _checked(_Unload, await body.read(request, service.limits))
        return JSONResponse({"id": models.unload(asked.name).name, "object": "model", "unloaded": True})

    async def status(request: Request) -> Response:
        every = [{**model.shown(), "status": _status(model), **vars(model.engine.stats())} for model in models.all()]
        return JSONResponse({"models": every, "loading": models.loading()})

    async def stats(request: Request) -> Response:
        known = {"up_s": round(time.time() - started, 1), "process_gib": round(process_gib(), 4), "audit_lines_lost": service.audit.lost}
        return JSONResponse({**known, "models": metrics.summary()})

    async def prometheus(request: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    gets: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/health": health,
        "/status": status,
        "/stats": stats,
        "/metrics": prometheus,
        "/v1/models": listed,
        "/v1/models/{id:path}": one,
    }
    posts = {"/v1/models/load": load, "/v1/models/unload": unload}
    return [Route(path, call, methods=["POST"]) for path, call in posts.items()] + [Route(path, call) for path, call in gets.items()]


def _status(model: Model) -> str:
    return "failed" if model.engine.failed else "ready"


def _checked(kind: type[_Body], sent: dict[str, Any]) -> _Body:
    try:
        return kind.model_validate(sent)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        valid = ", ".join(kind.model_fields)
        said = f"unknown, valid are {valid}" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise Refusal(400, f"`{key}`: {said}", param=key) from error
