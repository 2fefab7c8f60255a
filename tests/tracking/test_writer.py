import statistics
import threading
import time
from functools import partial
from typing import Any

import pytest

from forge.tracking import tries
from forge.tracking.writer import Writer


class Client:
    """Remembers what it is sent; fails as often as told."""

    def __init__(self, failures: int = 0):
        self.failures, self.calls = failures, 0
        self.sent: list[list[Any]] = []

    def log_batch(self, run_id: str, metrics: list[Any], synchronous: bool) -> None:
        self.calls += 1
        assert synchronous and threading.current_thread() is not threading.main_thread()
        if self.failures:
            self.failures -= 1
            raise ConnectionError("down")
        self.sent.append(metrics)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tries, "PAUSES_S", (0.0, 0.0, 0.0))


def sent(client: Client) -> list[tuple[str, float, int]]:
    return [(m.key, m.value, m.step) for batch in client.sent for m in batch]


def test_everything_arrives_in_order() -> None:
    client = Client()
    w = Writer(client, "run")  # type: ignore[arg-type]
    for step in range(2500):
        w.metrics({"a": float(step), "b": -1.0}, step)
    w.close()
    assert sent(client) == [point for step in range(2500) for point in (("a", float(step), step), ("b", -1.0, step))]
    assert max(len(batch) for batch in client.sent) <= 1000  # MLflow's limit
    assert all(len(batch) % 2 == 0 for batch in client.sent)  # a step is in one call


def test_values_that_are_not_finite_are_counted_and_not_sent() -> None:
    client = Client()
    w = Writer(client, "run")  # type: ignore[arg-type]
    w.metrics({"a": 1.0, "b": float("nan"), "c": float("inf")}, 3)
    w.metrics({"b": float("-inf")}, 4)
    w.close()
    assert sent(client) == [("a", 1.0, 3)]
    assert w.non_finite == 3


def test_a_call_that_fails_is_made_again() -> None:
    client = Client(failures=3)
    w = Writer(client, "run")  # type: ignore[arg-type]
    w.metrics({"a": 1.0}, 1)
    w.close()
    assert sent(client) == [("a", 1.0, 1)] and w.lost == 0


def test_what_fails_for_good_is_counted_and_the_rest_goes_on() -> None:
    client = Client(failures=4)
    w = Writer(client, "run")  # type: ignore[arg-type]
    w.metrics({"a": 1.0, "b": 2.0}, 1)
    w.call(lambda: None)  # keeps the two calls apart
    w.metrics({"a": 3.0}, 2)
    w.close()
    assert (w.lost, w.why) == (2, "ConnectionError: down")
    assert sent(client) == [("a", 3.0, 2)]


def test_after_a_loss_each_has_one_try_until_one_works() -> None:
    """4 tries lose the first and 1 the second; the third works, so the fourth, which fails 3 times, has its 4 tries again."""
    failures, tries = {1: 9, 2: 9, 3: 0, 4: 3}, dict.fromkeys((1, 2, 3, 4), 0)

    def call(number: int) -> None:
        tries[number] += 1
        if tries[number] <= failures[number]:
            raise ConnectionError("down")

    w = Writer(Client(), "run")  # type: ignore[arg-type]
    for number in failures:
        w.call(partial(call, number))
    w.close()
    assert tries == {1: 4, 2: 1, 3: 1, 4: 4} and w.lost == 2


def test_an_image_goes_after_the_metrics_before_it() -> None:
    client = Client()
    order: list[str] = []
    w = Writer(client, "run")  # type: ignore[arg-type]
    w.metrics({"a": 1.0}, 1)
    w.call(lambda: order.append(f"image after {len(client.sent)} call"))
    w.metrics({"a": 2.0}, 2)
    w.close()
    assert order == ["image after 1 call"] and len(client.sent) == 2


def test_fifty_metrics_a_step_cost_the_caller_less_than_a_millisecond() -> None:
    class Slow(Client):
        def log_batch(self, run_id: str, metrics: list[Any], synchronous: bool) -> None:
            time.sleep(0.05)
            super().log_batch(run_id, metrics, synchronous)

    client, took = Slow(), []
    w = Writer(client, "run")  # type: ignore[arg-type]
    metrics = {f"group/{number}": float(number) for number in range(50)}
    for step in range(200):
        started = time.perf_counter()
        w.metrics(metrics, step)
        took.append(time.perf_counter() - started)
    w.close()
    assert statistics.median(took) < 1e-3
    assert len(sent(client)) == 200 * 50


def test_a_mirror_that_works_gives_a_lost_store_no_further_tries_and_one_that_fails_loses_nothing_of_the_store() -> None:
    """4 tries lose the first, 1 each the other two: what the mirror takes says nothing of the store."""
    client, mirrored = Client(failures=10**6), list[Any]()
    w = Writer(client, "run", mirrored.append)  # type: ignore[arg-type]
    for step in (1, 2, 3):
        w.metrics({"a": 1.0}, step)
        while w.lost < step:  # so that each is a call of its own
            time.sleep(0.001)
    w.close()
    assert (client.calls, w.lost, len(mirrored), w.mirrored.lost) == (6, 3, 3, 0)

    def full(_: Any) -> None:
        raise OSError(28, "No space left on device")

    w = Writer(Client(), "run", full)  # type: ignore[arg-type]
    w.metrics({"a": 1.0, "b": 1.0}, 1)
    w.close()
    assert (w.lost, w.mirrored.lost) == (0, 2)
