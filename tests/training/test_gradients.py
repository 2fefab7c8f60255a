"""Gradients of a batch in parts are those of the batch in one piece, and the parts are alike in work."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import forge  # noqa: F401
from forge import blas
from forge.arrays import flat
from forge.spec import Batch
from forge.training import host, positions, streams
from forge.training.gradients import Gradients
from forge.training.objectives import causal_lm, token_losses

VOCAB = 23
pytestmark = pytest.mark.skipif(not streams.on_cpu(), reason="of the CPU")


def batch(lengths: Sequence[int], width: int = 20, seed: int = 0) -> Batch:
    """One document a row, of so many tokens, a third of them no targets."""
    draw = np.random.default_rng(seed)
    real = np.arange(width) < np.array(lengths)[:, None]
    tokens = np.where(real, draw.integers(1, VOCAB, real.shape), 0).astype(np.int32)
    mask = real & (draw.random(real.shape) > 0.3)
    mask[:, 0] = False
    return Batch(tokens, mask, real.astype(np.int32), tuple(f"row {n}" for n in range(len(lengths))), ("s",) * len(lengths))


@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("lengths", [[20, 20, 20, 20], [3, 20, 7, 0, 12], [9]])
def test_any_number_of_streams_gives_the_same(
    make_model: Callable[..., Any], cores: int, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "cores", lambda: cores)
    model = make_model()
    knobs = {"label_smoothing": 0.1, "z_loss": 1e-3}
    loss, count, sums, gradients = Gradients(model, partial(causal_lm, **knobs))(batch(lengths))
    (whole, (number, more)), expected = nn.value_and_grad(model, lambda rows: causal_lm(model, rows, **knobs))(batch(lengths))
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert count.item() == number.item() == batch(lengths).targets
    assert {name: value.item() for name, value in sums.items()} == pytest.approx({name: value.item() for name, value in more.items()})
    assert flat(gradients).keys() == flat(expected).keys()
    for name, value in flat(expected).items():
        np.testing.assert_allclose(np.array(flat(gradients)[name]), np.array(value), atol=1e-5 * max(1.0, mx.abs(value).max().item()))


@pytest.mark.parametrize("cores", [1, 3])
def test_evaluation_gives_the_losses_of_training_row_by_row(
    make_model: Callable[..., Any], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blas, "cores", lambda: cores)
    model, rows = make_model(), batch([5, 20, 12, 0, 9])
    losses_BT, mask_BT = token_losses(model, rows), rows.mask_BT[:, 1:]
    assert losses_BT.shape == (5, 19)
    for row in range(5):
        alone = Batch(*(x[row : row + 1] for x in (rows.tokens_BT, rows.mask_BT, rows.segments_BT)), ("one",))
        loss, (count, _) = causal_lm(model, alone)
        assert losses_BT[row].sum().item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
        assert mask_BT[row].sum().item() == count.item()
    assert (np.array(losses_BT)[~mask_BT] == 0).all()


def test_the_same_numbers_each_time_dropout_too(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "cores", lambda: 3)
    model = make_model()
    compute = Gradients(model, partial(causal_lm, neftune_alpha=5.0))

    def run(seed: int) -> tuple[float, list[np.ndarray]]:
        mx.random.seed(seed)
        loss, _, _, gradients = compute(batch([20, 4, 12, 9, 17]))
        return loss.item(), [np.array(value) for value in flat(gradients).values()]

    (loss, gradients), (again, same), (other, _) = run(1), run(1), run(2)
    assert loss == again != other
    assert all((a == b).all() for a, b in zip(gradients, same, strict=True))


def test_padding_of_a_part_is_cut_off_and_rows_of_like_length_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths 9 3 9 3 3 in two parts: areas of 2 x 9 and 3 x 3. Three and two rows as they come would be 27 and 6."""
    monkeypatch.setattr(blas, "cores", lambda: 2)
    rows = batch([9, 3, 9, 3, 3])
    (long, of_long, _), (short, of_short, _) = streams.parts(rows)
    assert (of_long.tolist(), of_short.tolist()) == ([0, 2], [1, 3, 4])
    assert (long.tokens_BT.shape, short.tokens_BT.shape) == ((2, 9), (3, 3))
    np.testing.assert_array_equal(long.tokens_BT, rows.tokens_BT[[0, 2], :9])
    np.testing.assert_array_equal(short.mask_BT, rows.mask_BT[[1, 3, 4], :3])
    assert short.row_ids == ("row 1", "row 3", "row 4")


@pytest.mark.parametrize(("cores", "expected"), [(2, [[0, 1], [2, 3]]), (8, [[0, 1], [2, 3]]), (1, [[0, 1, 2, 3]])])
def test_rows_that_belong_together_stay_so(cores: int, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "cores", lambda: cores)
    assert sorted(rows.tolist() for _, rows, _ in streams.parts(batch([9, 3, 3, 9]), together=2)) == expected


def test_an_objective_says_how_many_rows_belong_together(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "cores", lambda: 4)
    seen = []

    def pairs(model: nn.Module, rows: Batch, *, beta: float) -> Any:
        seen.append(rows.row_ids)
        return causal_lm(model, rows)

    pairs.rows_together = 2  # type: ignore[attr-defined]
    gradients = Gradients(make_model(), partial(pairs, beta=0.1))
    assert gradients.together == 2
    gradients(batch([9, 3, 3, 9]))
    assert seen == [("row 0", "row 1"), ("row 2", "row 3")]


def test_one_part_has_all_blas_threads_and_several_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    monkeypatch.setattr(blas, "use_threads", set_to.append)
    monkeypatch.setattr(blas, "cores", lambda: 4)
    for rows in (1, 2, 4, 9):
        streams.parts(batch([20] * rows))
    assert set_to == [4, 2, 1, 1]


@pytest.mark.parametrize(("compute", "calls"), [(lambda model, rows: Gradients(model, causal_lm)(rows), 4), (token_losses, 2)])
def test_attention_of_all_parts_is_settled_together(
    make_model: Callable[..., Any], compute: Callable[..., Any], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers, forward and perhaps backward. One part after the other would leave all cores but one idle in between."""
    found: list[list[int]] = []
    settle = host.settle

    def seen(lists: list[list[host.Note]]) -> None:
        found.append([len(notes) for notes in lists])
        settle(lists)

    monkeypatch.setattr(host, "settle", seen)
    monkeypatch.setattr(blas, "cores", lambda: 2)
    compute(make_model(), batch([20, 20, 20]))
    assert found == [[calls, calls]]


def test_no_more_parts_than_cores_rows_and_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores, rows in [(1, 5), (2, 5), (9, 5), (64, 30)]:
        monkeypatch.setattr(blas, "cores", lambda cores=cores: cores)
        found.append(len(streams.parts(batch([20] * rows))))
    assert found == [1, 2, 5, 8]


def test_each_thread_computes_on_streams_of_its_own(make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.setattr(blas, "cores", lambda: 2)
    rows, losses = batch([20, 20]), []

    def run() -> None:
        model = make_model()
        losses.append(Gradients(model, causal_lm)(rows)[0].item())

    run()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_arrays_are_dealt_to_lanes_of_like_size_and_come_back_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes 4, 3, 2, 1 on two lanes: 4 and 1, 3 and 2."""
    from forge.training.streams import lanes, over_lanes

    monkeypatch.setattr(blas, "cores", lambda: 2)
    tree = {"a": [mx.ones(3), mx.ones(4)], "b": {"c": mx.ones(1), "d": mx.ones(2)}}
    assert [names for _, names in lanes(flat(tree))] == [["a.1", "b.c"], ["a.0", "b.d"]]
    doubled = over_lanes(mx.add, tree, tree)
    assert {name: value.tolist() for name, value in flat(doubled).items()} == {
        name: [2.0] * value.size for name, value in flat(tree).items()
    }


@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("packed", [True, False])
def test_a_long_row_on_several_streams_gives_the_same(
    make_model: Callable[..., Any], cores: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 positions are four blocks of attention; documents end inside blocks, and one spans three."""
    monkeypatch.setattr(blas, "cores", lambda: cores)
    monkeypatch.setattr(streams, "_LONG", 300)
    monkeypatch.setattr(positions, "_LEAST", 100)
    cut = []
    monkeypatch.setattr(positions, "_cut", lambda x, count, whole=positions._cut: cut.append(x.shape) or whole(x, count))
    model, row = make_model(), batch([400], width=401)
    if packed:
        row = replace(row, segments_BT=np.repeat([1, 2, 3, 0], [60, 300, 40, 1])[None].astype(np.int32))
    objective = partial(causal_lm, chunk=64)
    loss, _, _, gradients = Gradients(model, objective)(row)
    assert len(streams.parts(row, spread=True)) == 1 and cut
    again = Gradients(model, objective)(row)
    (whole, _), expected = nn.value_and_grad(model, lambda row: (streams.parts(row), objective(model, row))[1])(row)
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    assert loss.item() == again[0].item()
    for name, value in flat(expected).items():
        found = flat(gradients)[name]
        np.testing.assert_allclose(np.array(found), np.array(value), atol=1e-5 * max(1.0, mx.abs(value).max().item()))
        assert mx.array_equal(found, flat(again[3])[name]).item()


def test_streams_left_over_by_few_long_rows_form_crews(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five cores and two long rows: two streams each, and one BLAS thread; short rows, or rows of an evaluation, get BLAS threads."""
    threads: list[int] = []
    monkeypatch.setattr(blas, "use_threads", threads.append)
    monkeypatch.setattr(blas, "cores", lambda: 5)

    def crews(width: int, spread: bool) -> list[int]:
        found = []
        for _, _, stream in streams.parts(batch([width] * 2, width=width), spread=spread):
            with mx.stream(stream):
                found.append(len(streams.crew()))
        return found

    assert [crews(1100, True), crews(20, True), crews(1100, False)] == [[2, 2], [1, 1], [1, 1]]
    assert threads == [1, 2, 2]
