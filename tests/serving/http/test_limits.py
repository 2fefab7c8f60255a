"""Tokens, rates, sizes, queues, time: who is refused, with which status, and who is not."""

import json
import socket
import time

import pytest

from forge.serving.http.auth import is_local
from forge.serving.http.faults import Refusal
from forge.serving.http.limits import Buckets, Limits
from tests.serving.http.conftest import until

SECRET = "a-long-secret"
ROUTES = ["/v1/models", "/v1/models/small", "/status", "/stats", "/metrics"]


@pytest.mark.parametrize("header", ["", "Bearer wrong", f"Bearer {SECRET}x", f"Basic {SECRET}", SECRET, "Bearer", "Bearer \xff"])
def test_without_the_token_nothing_but_health_is_told(serve, header) -> None:
    served = serve(tokens=(SECRET,))
    for path in ROUTES:
        status, told, answer = served.ask("GET", path, Authorization=header)
        assert (status, answer["error"]["type"], told["www-authenticate"]) == (401, "authentication_error", "Bearer")
    assert served.ask("POST", "/v1/completions", {"prompt": "hi"}, Authorization=header)[0] == 401
    assert served.ask("POST", "/v1/models/load", {"source": "x"}, Authorization=header)[0] == 401
    assert served.ask("GET", "/health", Authorization=header)[0] == 200


def test_with_a_token_all_is_told_by_any_name_of_the_host(serve) -> None:
    served = serve(tokens=("another", SECRET))
    for path in ROUTES:
        assert served.ask("GET", path, Authorization=f"Bearer {SECRET}", Host="example.org")[0] == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *(("127.0.0.1", True), ("127.0.0.2", True), ("localhost", True), ("::1", True), ("[::1]", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("127.example.org", False), ("", False)),
    ],
)
def test_which_hosts_are_of_this_machine(host, local) -> None:
    assert is_local(host) == local


def test_a_bucket_gives_its_burst_and_then_its_rate(monkeypatch) -> None:
    """60 a minute are one a second: after a burst of 3 the next comes at second 1; another client is untouched."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    buckets = Buckets(60, 3)
    for _ in range(3):
        buckets.take("ann")
    with pytest.raises(Refusal, match="60 requests a minute") as refused:
        buckets.take("ann")
    assert (refused.value.status, refused.value.headers["Retry-After"]) == (429, "1")
    buckets.take("bob")
    now[0] += 0.9
    with pytest.raises(Refusal):
        buckets.take("ann")
    now[0] += 0.1
    buckets.take("ann")
    now[0] += 1000  # it holds no more than its burst
    for _ in range(3):
        buckets.take("ann")
    with pytest.raises(Refusal):
        buckets.take("ann")


def test_a_client_that_asks_too_often_is_told_when_to_come_again(serve) -> None:
    served = serve(limits=Limits(rate=6, burst=2))
    assert [served.complete()[0] for _ in range(2)] == [200, 200]
    status, told, answer = served.complete()
    assert (status, answer["error"]["type"], told["retry-after"]) == (429, "rate_limit_error", "10")
    assert served.ask("GET", "/health")[0] == 200


def test_tokens_can_not_be_guessed_fast(serve) -> None:
    served = serve(tokens=(SECRET,), limits=Limits(rate=6, burst=3))
    found = [served.ask("GET", "/v1/models", Authorization=f"Bearer guess-{number}")[0] for number in range(5)]
    assert found == [401, 401, 401, 429, 429]
    assert served.ask("GET", "/v1/models", Authorization=f"Bearer {SECRET}")[0] == 200, "who has the token is another client"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [10_001, 20_000_000])
def test_a_large_body_is_refused_whether_its_length_is_told_or_not(serve, chunked, size) -> None:
    served = serve(limits=Limits(body_bytes=10_000))
    body = b'{"prompt": "' + b"z" * size
    sent = iter([body]) if chunked else body
    status, _, answer = served.ask("POST", "/v1/completions", sent)
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


def test_a_body_of_the_limit_is_taken(serve) -> None:
    served = serve(limits=Limits(body_bytes=10_000))
    body = json.dumps({"prompt": "", "max_tokens": 2})
    exact = body.replace('""', '"' + "z" * (10_000 - len(body)) + '"').encode()
    assert len(exact) == 10_000
    assert served.ask("POST", "/v1/completions", exact)[0] == 200


def test_a_body_that_does_not_come_is_given_up(serve) -> None:
    served = serve(limits=Limits(read_s=0.2))
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(
            b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a"'
        )
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_full_queue_is_429_and_takes_again_when_one_left(serve) -> None:
    """One slot and two that may wait: three are taken, the fourth is not, until one of them has left."""
    served = serve(pause_s=0.01, slots=1, limits=Limits(queue=2))
    clients = [served.begin() for _ in range(3)]
    until(lambda: served.toys["small"].running == 3, 5)
    status, told, answer = served.complete()
    assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(told["retry-after"]) <= 60
    clients[0].close()
    until(lambda: served.toys["small"].running == 2, 1)
    assert served.complete()[0] == 200
    for client in clients:
        client.close()


@pytest.mark.parametrize("asked", [{"n": 2}, {"prompt": ["hi", "ho"]}, {"prompt": [[1], [2]]}])
def test_the_queue_counts_completions_and_not_requests(serve, asked) -> None:
    """Two slots and none that may wait: beside one completion a request of two is too many, and is taken when that one has left."""
    served = serve(pause_s=0.01, slots=2, limits=Limits(queue=0))
    client = served.begin()
    until(lambda: served.toys["small"].running == 1, 5)
    status, told, answer = served.complete(**asked)
    assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
    assert 1 <= int(told["retry-after"]) <= 60
    assert served.complete()[0] == 200, "one fits"
    client.close()
    until(lambda: served.toys["small"].running == 0, 5)
    assert served.complete(**asked)[0] == 200


def test_a_request_that_would_never_fit_is_400(serve) -> None:
    """To come again would be of no use, and clients do come again after 429."""
    served = serve(slots=2, limits=Limits(queue=1))
    assert served.complete(n=3)[0] == 200
    status, told, answer = served.complete(n=4)
    assert (status, "retry-after" in told) == (400, False)
    assert "4 completions" in answer["error"]["message"] and "3 at most" in answer["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_past_its_time_is_504(serve, stream) -> None:
    """Streamed it has begun with 200 by then, and ends with the error as an event."""
    served = serve(pause_s=0.05, limits=Limits(timeout_s=0.3))
    status, _, answer = served.complete(max_tokens=900, stream=stream)
    if stream:
        *_, last = answer.strip().split("\n\n")
        assert (status, json.loads(last.removeprefix("data: "))["error"]["code"]) == (200, "timed_out")
    else:
        assert (status, answer["error"]["type"]) == (504, "timeout_error")


def test_only_listed_origins_may_ask_from_a_browser(serve) -> None:
    ours, other = "https://app.example.org", "https://evil.example"
    served = serve(cors=(ours,), tokens=(SECRET,))

    def preflight(origin: str) -> tuple[int, str | None]:
        asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
        status, told, _ = served.ask("OPTIONS", "/v1/completions", Origin=origin, **asks)
        return status, told.get("access-control-allow-origin")

    assert preflight(ours) == (200, ours)
    assert preflight(other) == (400, None)
    _, told, _ = served.ask("GET", "/v1/models", Origin=ours)
    assert told["access-control-allow-origin"] == ours, "so that the page can read why it was refused"


def test_without_a_list_no_origin_may(serve) -> None:
    status, told, _ = serve().ask("OPTIONS", "/v1/completions", Origin="https://a.example", Access_Control_Request_Method="POST")
    assert status == 405 and "access-control-allow-origin" not in told
