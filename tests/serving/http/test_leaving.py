"""Clients that leave, servers that stop, and /health through all of it."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from forge.serving.contract import Piece, Sampling
from forge.serving.http import app, generate, server
from forge.serving.http.limits import Limits
from forge.serving.http.models import Models, Source
from tests.serving.http.conftest import Toy, until


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_second(serve, stream) -> None:
    served = serve(pause_s=0.01)
    clients = [served.begin(stream=stream) for _ in range(3)]
    until(lambda: served.toys["small"].running == 3, 5)
    for left, client in enumerate(clients, start=1):
        client.close()
        until(lambda left=left: served.toys["small"].running == 3 - left, 1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_real_model_stops_computing_for_a_client_that_left(make_folder, tmp_path, serve_real, stream) -> None:
    """It would say a hundred million tokens. Another client's answer is not touched."""
    served = serve_real(make_folder(tmp_path, None, context=10**9, endless=True))
    engine = served.service.models.find(None).engine
    client = served.begin(max_tokens=10**8, stream=stream)
    until(lambda: engine.stats().active == 1, 20)
    until(lambda: engine.stats().completion_tokens > 10, 20)
    client.close()
    until(lambda: engine.stats().active == 0, 1)
    assert served.complete()[2]["usage"]["completion_tokens"] == 2


def test_what_a_client_left_is_logged_as_such(serve, tmp_path) -> None:
    served = serve(pause_s=0.01, audit=tmp_path / "audit.jsonl")
    served.begin().close()
    until(lambda: (tmp_path / "audit.jsonl").read_text().count("\n") == 1, 5)
    assert json.loads((tmp_path / "audit.jsonl").read_text())["status"] == 499


@pytest.mark.parametrize("body", [b'{"prompt": "' + b"z" * 1_900_000 + b'"}', b"[" + b"[]," * 90_000 + b"1]"])
def test_health_answers_while_large_bodies_and_answers_are_on_their_way(serve, body) -> None:
    served = serve(pause_s=0.0005)
    ended = threading.Event()

    def load() -> None:
        while not ended.is_set():
            served.ask("POST", "/v1/completions", body)
            served.complete(stream=True, max_tokens=200)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    took = []
    for _ in range(40):
        began = time.monotonic()
        assert served.ask("GET", "/health")[0] == 200
        took.append(time.monotonic() - began)
    ended.set()
    for thread in threads:
        thread.join()
    assert sorted(took)[len(took) // 2] < 0.1


def begun(serve, max_tokens: int):
    """A server around a slow toy with one request on its way, and the thread that serves it."""
    served = serve(pause_s=0.02)
    listener = server.bound("127.0.0.1", 0)
    served.port = listener.getsockname()[1]
    return served, listener, {"max_tokens": max_tokens}


def test_a_stopping_server_lets_what_runs_end(serve) -> None:
    served, listener, asked = begun(serve, max_tokens=25)  # half a second
    found: list = []
    with server.serving(app.build(served.service), listener, served.service.models.stop, grace_s=10):
        client = threading.Thread(target=lambda: found.append(served.complete(**asked)))
        client.start()
        until(lambda: served.toys["small"].running == 1, 5)
    client.join()
    assert found[0][0] == 200 and found[0][2]["usage"]["completion_tokens"] == 25
    with pytest.raises(ConnectionRefusedError):
        served.complete()


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopping_server_ends_what_runs_too_long_with_a_word(serve, stream) -> None:
    served, listener, asked = begun(serve, max_tokens=900)
    found: list = []
    began = time.monotonic()
    with server.serving(app.build(served.service), listener, served.service.models.stop, grace_s=0.3):
        client = threading.Thread(target=lambda: found.append(served.complete(stream=stream, **asked)))
        client.start()
        until(lambda: served.toys["small"].running == 1, 5)
    client.join()
    status, _, answer = found[0]
    if stream:
        assert json.loads(answer.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "shutting_down"
    else:
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
    assert time.monotonic() - began < 3
    until(lambda: served.toys["small"].running == 0, 1)


def test_a_stop_goes_on_where_a_call_ends_meanwhile() -> None:
    """It is called in the main thread, while the event loop forgets calls that end."""
    models = Models(lambda folder, adapter: Toy(), lambda uri: (Path(uri), uri), Limits())
    model = models.opened(Source("small", "/models/small"))
    cancelled = []

    async def begin_two_and_stop() -> None:
        jobs = [("hi", Sampling(max_tokens=0))]
        with ExitStack() as other, models.call(model, jobs, False, 1.0) as first:
            second = other.enter_context(models.call(model, jobs, False, 1.0))
            first.cancel = lambda: (cancelled.append(first), other.pop_all().close())  # type: ignore[method-assign]
            second.cancel = lambda: cancelled.append(second)  # type: ignore[method-assign]
            models.stop()

    asyncio.run(begin_two_and_stop())
    assert len(set(map(id, cancelled))) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_stuck_is_504(serve, monkeypatch, stream) -> None:
    monkeypatch.setattr(generate, "_GRACE_S", 0.1)
    served = serve(limits=Limits(timeout_s=0.1))
    served.toys["small"].submit = lambda *_: Toy.Ticket()  # type: ignore[method-assign, assignment]
    status, _, answer = served.complete(stream=stream)
    assert (status, answer["error"]["code"]) == (504, "timed_out")


def test_a_client_that_does_not_read_is_dropped(serve, monkeypatch) -> None:
    """After its time is over, too, when nothing more is sent to it."""
    monkeypatch.setattr(server, "_UNREAD_S", 0.5)
    monkeypatch.setattr(generate, "_GRACE_S", 0.1)
    served = serve(limits=Limits(timeout_s=0.3))

    def flood(prompt: object, sampling: object, timeout_s: float, listener: Callable[[object], None]) -> Toy.Ticket:
        for _ in range(200):
            listener(Piece("a" * 100_000))
        return Toy.Ticket()

    served.toys["small"].submit = flood  # type: ignore[method-assign, assignment]
    client = served.begin(stream=True)
    until(lambda: len(connections(served.port)) == 1, 2)
    until(lambda: connections(served.port) == [], 5)
    client.close()


def dropped(client: socket.socket, begin: bytes) -> bool:
    """Whether the server does so while a byte comes now and then."""
    with suppress(OSError):
        client.sendall(begin)
        for _ in range(2000):
            time.sleep(0.01)
            client.sendall(b"x")
        return False
    return True


@pytest.mark.parametrize("said", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nX: "])
def test_a_request_whose_head_does_not_come_to_its_end_is_dropped(serve, said) -> None:
    served = serve(limits=Limits(read_s=0.3))
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(said)
        assert client.recv(100) == b""


def test_a_head_that_comes_a_byte_at_a_time_is_dropped(serve) -> None:
    """Also the second one of a connection, which has the time of a head and not that of an idle connection."""
    served = serve(limits=Limits(read_s=0.5))
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        assert dropped(client, b"GET /health HTTP/1.1\r\nX: ")


def test_a_body_that_comes_on_and_on_after_its_answer_is_dropped(serve, monkeypatch) -> None:
    monkeypatch.setattr(server, "_TOLD_S", 0.1)
    served = serve(limits=Limits(read_s=0.5))
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        assert dropped(client, b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")


def test_the_time_for_a_request_to_come_is_not_that_of_its_answer_nor_of_a_connection_at_rest(serve) -> None:
    served = serve(pause_s=0.05, limits=Limits(read_s=1.0))
    with closing(HTTPConnection("127.0.0.1", served.port, timeout=20)) as connection:
        for stream in (True, False):
            body = json.dumps({"prompt": "hi", "max_tokens": 30, "stream": stream})  # 1.5 s
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            used = connection.sock
            assert answer.status == 200 and len(answer.read()) > 60
            time.sleep(1.5)
            assert connection.sock is used is not None, "http.client makes a new one where it was closed"


def connections(port: int) -> list[Any]:
    """The server's side of them."""
    every = psutil.Process().net_connections("tcp4")
    return [each for each in every if each.laddr and each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED]


def test_health_answers_while_a_large_answer_is_put_together(serve, monkeypatch) -> None:
    entered, left, found = threading.Event(), threading.Event(), []

    def slow(*_: object) -> dict:
        entered.set()
        assert left.wait(5), "nothing else went on meanwhile"
        return {}

    served = serve()
    monkeypatch.setattr(generate.protocol, "answer", slow)
    client = threading.Thread(target=lambda: found.append(served.complete()[0]))
    client.start()
    assert entered.wait(5)
    assert served.ask("GET", "/health")[0] == 200
    left.set()
    client.join()
    assert found == [200]


def test_no_connection_keeps_the_others_waiting_for_more_than_a_few_kilobytes_of_it(serve, monkeypatch) -> None:
    """Chunks of a byte cost a thousand times what they weigh: asyncio would hand over 256 KiB of them at once."""
    taken = []

    def noted(self: Any, data: bytes) -> None:
        taken.append(len(data))
        H11Protocol.data_received(self, data)

    monkeypatch.setattr(server._Protocol, "data_received", noted)
    served = serve()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = json.dumps({"prompt": "hi" * 5000, "max_tokens": 2}).encode()
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as client:
        client.sendall(head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert sum(taken) > 6 * len(body) and max(taken) <= 4096


def test_a_bug_is_500_without_its_trace(serve, caplog) -> None:
    served = serve(limits=Limits())
    served.toys["small"].submit = None  # type: ignore[method-assign, assignment]
    status, _, answer = served.complete()
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "NoneType" not in answer["error"]["message"]
    until(lambda: "NoneType" in caplog.text, 1)  # the log has it
