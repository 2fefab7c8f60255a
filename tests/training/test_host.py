"""NumPy inside a graph that is computed later."""

from collections.abc import Sequence
from contextlib import nullcontext
from threading import Thread
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from forge.training import host
from forge.training.formulation import differentiable

MEBIBYTE = 2**18  # fp32 numbers


def squared(x: mx.array) -> mx.array:
    """By NumPy, gradient included."""

    def forward(x: mx.array) -> mx.array:
        return host.call(lambda given, empty: np.copyto(empty[0], given[0] ** 2), [x], [x.shape])[0]

    def backward(x: mx.array, cotangent: mx.array, out: mx.array) -> mx.array:
        return host.call(lambda given, empty: np.copyto(empty[0], 2 * given[0] * given[1]), [x, cotangent], [x.shape])[0]

    return cast(mx.array, differentiable(forward, backward)(x))


def test_a_noted_call_is_filled_when_it_is_settled_and_not_before() -> None:
    seen = []

    def double(given: list[np.ndarray], empty: list[np.ndarray]) -> None:
        seen.append(given[0].tolist())
        np.copyto(empty[0], 2 * given[0])

    x = mx.array([1.0, 2.0])
    with host.noted() as notes:
        (y,) = host.call(double, [x + 1], [(2,)])
        z, early = y * 10, y + 1
        assert mx.isnan(early).all().item(), "who looks too early sees no number that could be right"
    assert seen == [] and len(notes) == 1
    host.settle([notes])
    assert seen == [[2.0, 3.0]] and z.tolist() == [40.0, 60.0] and notes == []


def test_without_a_notebook_a_call_is_settled_at_once() -> None:
    assert squared(mx.array([3.0])).tolist() == [9.0]


def test_a_thread_has_notes_of_its_own_and_a_notebook_within_another_hides_it() -> None:
    found: list[float] = []
    with host.noted() as outer:
        with host.noted() as inner:
            squared(mx.array([2.0]))
        thread = Thread(target=lambda: found.append(squared(mx.array([3.0])).item()))
        thread.start()
        thread.join()
        squared(mx.array([4.0]))
    assert (len(inner), found, len(outer)) == (1, [9.0], 1)


@pytest.mark.parametrize("fails", [True, False])
def test_a_product_within_a_call_takes_one_thread_and_afterwards_as_many_as_before(fails: bool) -> None:
    def threads() -> list[int]:
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    def look(given: Sequence[np.ndarray], empty: Sequence[np.ndarray]) -> None:
        seen.extend(threads())
        assert not fails

    seen: list[int] = []
    with threadpool_limits(limits=3, user_api="blas"):
        before = threads()
        with pytest.raises(AssertionError) if fails else nullcontext():
            host.call(look, [], [(1,)])
        assert threads() == before and set(seen) == {1} != set(before)


@pytest.mark.parametrize("noted", [True, False])
def test_gradients_go_through_calls_that_need_each_other(noted: bool) -> None:
    """d/dx (x² + 1)² = 4x (x² + 1)."""

    def loss(x: mx.array) -> mx.array:
        return squared(squared(x) + 1).sum()

    x = mx.array([1.0, -2.0])
    if noted:
        with host.noted() as notes:
            value, gradient = mx.value_and_grad(loss)(x)
        assert len(notes) == 4
        host.settle([notes])
    else:
        value, gradient = mx.value_and_grad(loss)(x)
    assert (value.item(), gradient.tolist()) == (29.0, [8.0, -40.0])


def test_graphs_are_settled_side_by_side_also_of_several_lengths() -> None:
    order: list[str] = []

    def graph(name: str, calls: int) -> tuple[mx.array, list[host.Note]]:
        def plus_one(given: Sequence[np.ndarray], empty: Sequence[np.ndarray]) -> None:
            order.append(name)
            np.copyto(empty[0], given[0] + 1)

        x = mx.array([0.0])
        with host.noted() as notes:
            for _ in range(calls):
                (x,) = host.call(plus_one, [x], [(1,)])
        return x, notes

    (a, of_a), (b, of_b) = graph("a", 3), graph("b", 1)
    host.settle([of_a, of_b])
    assert (a.item(), b.item()) == (3.0, 1.0) and order == ["a", "b", "a", "a"]


def test_what_lies_between_noted_calls_does_not_stay() -> None:
    """Twenty sums of 1 MiB between ten calls: what needs no gradient is freed on the way, while settled at once all 200 would stay."""

    def loss(x: mx.array) -> mx.array:
        for _ in range(10):
            x = squared(x)
            for _ in range(20):
                x = x + 1e-3
        return x.sum()

    x = mx.zeros((MEBIBYTE,))
    mx.eval(x)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    with host.noted() as notes:
        value, gradient = mx.value_and_grad(loss)(x)
    host.settle([notes])
    mx.eval(value, gradient)
    assert mx.get_peak_memory() - before < 60 * 2**20


def test_lanes_run_in_threads_and_answer_in_their_order() -> None:
    assert host.side_by_side(sum, [[1, 2], [3], []]) == [3, 3, 0]
    with pytest.raises(ZeroDivisionError):
        host.side_by_side(lambda lane: 1 // len(lane), [[1], []])
