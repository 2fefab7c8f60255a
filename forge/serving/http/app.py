"""The application: its routes, what stands before them, and errors in one form."""

from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from forge.serving.http import manage
from forge.serving.http.faults import Refusal
from forge.serving.http.gate import Gate
from forge.serving.http.generate import Generate
from forge.serving.http.service import Service


def build(service: Service) -> Starlette:
    """The ASGI application."""
    routes = [
        Route("/v1/chat/completions", Generate(service, "chat"), methods=["POST"]),
        Route("/v1/completions", Generate(service, "completion"), methods=["POST"]),
        *manage.routes(service),
    ]
    paths = [route.path for route in routes]

    async def off_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = " and ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
            sentence = f"{request.method} is not taken here, only {allowed}"
            return Refusal(405, sentence, "method_not_allowed", headers=error.headers).response()
        return Refusal(404, f"there is no {request.url.path[:100]}; there are {', '.join(paths)}", "unknown_route").response()

    async def bug(request: Request, error: Exception) -> Response:
        return Refusal(500, "an internal error; the server's log has its cause", "internal_error").response()

    cors = Middleware(
        CORSMiddleware,
        allow_origins=service.cors,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["Retry-After"],
    )
    return Starlette(
        routes=routes,
        middleware=[*([cors] if service.cors else []), Middleware(Gate, service=service)],
        exception_handlers={HTTPException: off_route, Exception: bug},
    )
