"""Batches read ahead on a thread: the same ones, in their place, and no thread that outlives its use."""

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from forge.spec import Batch
from forge.training.prefetch import Prefetched

_LONG_S = 20.0  # what no test waits for unless it fails


class Numbers:
    """Batch n holds the number n. Number `broken` can't be made; from `held` on, none is made until `gate` opens."""

    def __init__(self, broken: int | None = None, held: int | None = None):
        self.cursor, self.broken, self.held, self.gate, self.asked = 0, broken, held, threading.Event(), 0

    def next(self) -> Batch:
        self.asked += 1
        if self.held is not None and self.cursor >= self.held:
            self.gate.wait(_LONG_S)
        if self.cursor == self.broken:
            raise ValueError(f"batch {self.cursor} is broken")
        self.cursor += 1
        tokens = np.full((1, 1), self.cursor - 1, dtype=np.int32)
        return Batch(tokens, tokens > 0, tokens, ("row",), ("a",))

    def epochs(self, cursor: int) -> dict[str, float]:
        return {"a": cursor / 10}


def number(batch: Batch) -> int:
    return int(batch.tokens_BT[0, 0])


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + _LONG_S
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert not threads()
    yield
    until(lambda: not threads())


@pytest.mark.parametrize("ahead", [1, 2, 7])
def test_the_batches_are_the_plain_ones_in_their_order(make_data: Callable[..., Any], ahead: int) -> None:
    """Past an epoch, and with a seek back in between."""
    plain, other = make_data().train, make_data().train
    plain.cursor = other.cursor = 3
    with Prefetched(other, ahead) as prefetched:
        for step in range(60):
            if step == 40:
                plain.cursor = prefetched.cursor = 5
            one, same = plain.next(), prefetched.next()
            assert one.row_ids == same.row_ids and one.sources == same.sources
            for name in ("tokens_BT", "mask_BT", "segments_BT"):
                assert np.array_equal(getattr(one, name), getattr(same, name))
            assert prefetched.cursor == plain.cursor and prefetched.epochs(plain.cursor) == plain.epochs(plain.cursor)


def test_the_cursor_is_of_what_was_consumed_and_no_more_is_read_than_asked() -> None:
    source = Numbers()
    with Prefetched(source, ahead=3) as prefetched:
        assert (prefetched.cursor, source.asked) == (0, 0)
        assert number(prefetched.next()) == 0
        until(lambda: source.cursor == 4)
        time.sleep(0.05)
        assert (prefetched.cursor, source.asked) == (1, 4)
    assert source.cursor == 1
    assert number(source.next()) == 1
    prefetched.close()
    assert source.cursor == 2


def test_a_seek_drops_what_was_read_and_what_is_being_read() -> None:
    source = Numbers(held=2)
    with Prefetched(source, ahead=2) as prefetched:
        assert number(prefetched.next()) == 0
        until(lambda: source.asked == 3)  # 1 is ready, 2 is being made
        prefetched.cursor = 7
        assert prefetched.cursor == 7
        source.gate.set()
        assert [number(prefetched.next()) for _ in range(3)] == [7, 8, 9]
        prefetched.cursor = 1
        assert [number(prefetched.next()) for _ in range(3)] == [1, 2, 3]


def test_an_error_is_raised_where_its_batch_would_have_come_and_the_reading_goes_on_from_there() -> None:
    source = Numbers(broken=2)
    with Prefetched(source, ahead=4) as prefetched:
        assert [number(prefetched.next()) for _ in range(2)] == [0, 1]
        time.sleep(0.05)
        assert source.asked == 3  # room is left, but it is not tried over and over
        for _ in range(2):
            with pytest.raises(ValueError, match="batch 2 is broken"):
                prefetched.next()
            assert prefetched.cursor == 2
        source.broken = None
        prefetched.cursor = 2
        assert number(prefetched.next()) == 2
        source.broken = 5
        prefetched.cursor = 6
        assert number(prefetched.next()) == 6


@pytest.mark.parametrize("ahead", [1, 3])
def test_closing_ends_a_thread_that_waits_for_room(ahead: int) -> None:
    prefetched = Prefetched(Numbers(), ahead)
    prefetched.next()
    assert len(threads()) == 1
    prefetched.close()
    prefetched.close()
    assert not threads()
    with pytest.raises(RuntimeError, match="closed"):
        prefetched.next()


def test_closing_wakes_one_who_waits_for_a_batch() -> None:
    source = Numbers(held=0)
    prefetched = Prefetched(source)
    closing = threading.Timer(0.05, prefetched.close)
    closing.start()
    with pytest.raises(RuntimeError, match="closed"):
        prefetched.next()
    source.gate.set()
    closing.join()


def test_the_thread_ends_when_nobody_has_the_batches_any_more() -> None:
    prefetched = Prefetched(Numbers())
    prefetched.next()
    del prefetched
    gc.collect()
    until(lambda: not threads())


def test_what_was_consumed_is_not_kept_alive_while_the_next_is_made() -> None:
    source = Numbers(held=1)
    with Prefetched(source) as prefetched:
        batch = weakref.ref(prefetched.next())
        until(lambda: source.asked == 2)
        assert batch() is None
        source.gate.set()


def test_an_interrupt_while_waiting_loses_no_batch() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    source = Numbers(held=1)
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Prefetched(source) as prefetched:
            prefetched.next()
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                prefetched.next()
            assert prefetched.cursor == 1
            source.gate.set()
            assert [number(prefetched.next()) for _ in range(2)] == [1, 2]
    finally:
        signal.signal(signal.SIGALRM, former)


_STUCK = """
import time
from forge.training.prefetch import Prefetched
class Stuck:
    cursor = 0
    def next(self):
        self.cursor += 1
        if self.cursor > 1:
            time.sleep(600)
        from forge.spec import Batch
        return Batch(None, None, None, ())
    def epochs(self, cursor):
        return {}
prefetched = Prefetched(Stuck())
prefetched.next()
print("consumed", flush=True)
"""


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_thread_that_is_stuck_keeps_no_process_alive(interrupted: bool) -> None:
    program = _STUCK + ("prefetched.next()\n" if interrupted else "")
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "consumed\n"
    if interrupted:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=_LONG_S)
    assert ("KeyboardInterrupt" in said) is interrupted
    assert process.returncode == (-signal.SIGINT if interrupted else 0), said
