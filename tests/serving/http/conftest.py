"""The application on a port of this machine, around a toy that says words, or around a real model of a few thousand weights."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from forge.serving.contract import Completion, Piece, Stats
from forge.serving.faults import Cancelled, TimedOut
from forge.serving.http import app, server
from forge.serving.http.audit import Audit
from forge.serving.http.auth import Tokens
from forge.serving.http.limits import Limits
from forge.serving.http.metrics import Metrics
from forge.serving.http.models import Models, Source
from forge.serving.http.service import Service
from forge.serving.http.sources import Allowed
from forge.serving.parts import Format


class Toy:
    """Says "a " once every `pause_s`, each request in a thread of its own, until max_tokens, its time limit, or cancel."""

    context, tokenizer_has_template, format = 1000, True, Format()

    def __init__(self, pause_s: float = 0.0, slots: int = 8):
        self.pause_s, self.slots, self.running, self.closed, self.failed = pause_s, slots, 0, False, False

    def submit(self, prompt: Any, sampling: Any, timeout_s: float = 60, listener: Any = None) -> "Toy.Ticket":
        ticket = Toy.Ticket()
        threading.Thread(target=self._say, args=(ticket, sampling, time.monotonic() + timeout_s, listener), daemon=True).start()
        return ticket

    def _say(self, ticket: "Toy.Ticket", sampling: Any, until: float, listener: Any) -> None:
        self.running += 1
        said: Any = Completion("a " * sampling.max_tokens, 3, sampling.max_tokens, "length")
        for _ in range(sampling.max_tokens):
            if ticket.left.wait(self.pause_s) or time.monotonic() > until:
                said = Cancelled("taken back") if ticket.left.is_set() else TimedOut("not finished in time")
                break
            listener(Piece("a "))
        self.running -= 1
        ticket.ended = True
        listener(said)

    def stats(self) -> Stats:
        return Stats(self.running, 0, 0, 0, 0, 0, 0.0, 0.0, 0.0)

    def close(self) -> None:
        self.closed = True

    class Ticket:
        def __init__(self) -> None:
            self.left, self.ended = threading.Event(), False

        def cancel(self) -> None:
            self.left.set()

        def done(self) -> bool:
            return self.ended


@dataclass
class Served:
    """A server that runs. `toys`: the toy of each model."""

    port: int
    service: Service
    toys: dict[str, Toy] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and the JSON that came. A body of bytes or an iterable is sent as it is."""
        raw = body if isinstance(body, bytes) or hasattr(body, "__next__") else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, None if body is None else raw, {k: v for k, v in sent.items() if v})
            answer = connection.getresponse()
            text = answer.read()
            known = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, known, json.loads(text) if known.get("content-type") == "application/json" else text.decode()
        finally:
            connection.close()

    def complete(self, **body: Any) -> tuple[int, dict[str, str], Any]:
        return self.ask("POST", "/v1/completions", {"prompt": "hi", "max_tokens": 2} | body)

    def begin(self, **body: Any) -> socket.socket:
        """A completion that was asked for; nothing is read."""
        raw = json.dumps({"prompt": "hi", "max_tokens": 900} | body).encode()
        client = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        client.sendall(head.encode() + raw)
        return client


def until(happened: Callable[[], bool], within_s: float) -> float:
    """The seconds it took."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < within_s, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - started


@contextmanager
def running(
    opener: Callable[..., Any],
    sources: dict[str, str],
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    tokens: tuple[str, ...] = (),
    allowed: tuple[str, ...] = (),
    cors: tuple[str, ...] = (),
    audit: Path | None = None,
    prompts: bool = False,
    grace_s: float = 1.0,
) -> Iterator[Served]:
    listener = server.bound("127.0.0.1", 0)
    port = listener.getsockname()[1]
    models = Models(opener, lambda uri: (Path("/registered") / uri.removeprefix("models:/"), f"{uri}#1"), limits)
    log = Audit(str(audit) if audit else None, prompts)
    service = Service(models, Metrics(models.live), log, limits, Tokens(tokens), Allowed(allowed), cors)
    for name, place in sources.items():
        models.add(models.opened(Source(name, place)))
    with server.serving(app.build(service), listener, models.stop, grace_s, limits.read_s) as ended:
        yield Served(port, service)
    assert ended.is_set()
    log.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """serve(pause_s=0.0, slots=8, **what running takes): toys under the names `small` and, where asked for, others."""
    with ExitStack() as stack:

        def start(pause_s: float = 0.0, slots: int = 8, names: tuple[str, ...] = ("small",), **settings: Any) -> Served:
            toys: dict[str, Toy] = {}

            def opener(folder: Path, adapter: Path | None) -> Toy:
                return toys.setdefault(folder.name, Toy(pause_s, slots))

            served = stack.enter_context(running(opener, {name: f"/models/{name}" for name in names}, **settings))
            served.toys = toys
            return served

        yield start


def generating(folder: Path, adapter: Path | None) -> Any:
    from forge.serving.engine import GenerationThread

    return GenerationThread(folder, adapter=adapter)


@pytest.fixture
def serve_real() -> Iterator[Callable[..., Served]]:
    """serve_real(folder, **what running takes): a model that is really computed, under its folder's name."""
    with ExitStack() as stack:

        def start(folder: Path, **settings: Any) -> Served:
            served = stack.enter_context(running(generating, {folder.name: str(folder)}, **settings))
            for model in served.service.models.all():
                stack.callback(model.engine.close)
            return served

        yield start


@pytest.fixture(scope="session")
def real(chat_folder: Path) -> Iterator[Served]:
    """The chat model of tests/serving under the name `tiny`."""
    with running(generating, {"tiny": str(chat_folder)}) as served:
        engine = served.service.models.find("tiny").engine
        yield served
    engine.close()
