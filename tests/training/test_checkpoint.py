"""Checkpoints and the history beside them, through the store alone: any arrays do."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import forge  # noqa: F401  (before mlx)
from forge.errors import TrainingError
from forge.training import checkpoint
from forge.training.checkpoint import State, Store, steps

STAMP = {"configuration": "c", "data": "d"}


class Killed(BaseException):
    pass


def state(step: int, loss: float | None = None, rows: Any = (), points: int | None = None, **others: Any) -> State:
    """With a history of one line a step, from step 0 on."""
    history = [(n, {"train/loss": 1 / (n + 1)}) for n in range(step + 1 if points is None else points)]
    return State(step=step, loss=loss, rows=list(rows), history=history, **others)


def weights(step: int) -> dict[str, mx.array]:
    return {"w": mx.full((3,), step), "half": mx.array([step + 0.5], dtype=mx.bfloat16)}


def arrays(step: int) -> dict[str, mx.array]:
    return {"w.m": mx.full((2, 2), -step), "step": mx.array(step, dtype=mx.uint64)}


@pytest.fixture
def store(tmp_path: Path) -> Callable[..., Store]:
    """A new life of the run."""
    return lambda keep=0: Store(tmp_path / "run", "id", STAMP, keep)


def saved(store: Store, *states: State) -> Store:
    for one in states:
        store.save(weights(one.step), arrays(one.step), one)
    return store


def lines(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def expected(step: int) -> list[Any]:
    return [[n, {"train/loss": 1 / (n + 1)}] for n in range(step + 1)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_saved_comes_back(store: Any) -> None:
    whole = state(
        7, 1.25, [(2.5, 2), (0.1, 1)], cursor=9, tokens=11, source_tokens={"a": 11}, seconds=0.1, reason="why", callbacks={"x": {"n": 1}}
    )
    saved(store(), whole)
    again, found, others = store().resume()
    assert again == whole
    for expected, actual in ((weights(7), found), (arrays(7), others)):
        assert expected.keys() == actual.keys()
        for name, value in expected.items():
            assert actual[name].dtype == value.dtype and mx.array_equal(actual[name], value), name


def test_where_nothing_was_saved_there_is_nothing_to_resume(store: Any, tmp_path: Path) -> None:
    assert store().resume() is None
    assert (store().best(), store().last(), store().last_step()) == (None, None, 0)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_is_never_touched_again(store: Any, tmp_path: Path) -> None:
    run = saved(store(keep=9), state(2))
    before = contents(run.at(2))
    saved(run, state(4), state(6))
    saved_again = store(keep=9)
    saved_again.resume()
    saved(saved_again, state(8))
    assert contents(run.at(2)) == before
    assert lines(tmp_path / "run") == expected(8)


def test_a_save_of_a_long_run_is_no_larger(store: Any) -> None:
    run = saved(store(keep=9), state(5), state(6, points=20_000))
    short, long = (sum(map(len, contents(run.at(step)).values())) for step in (5, 6))
    assert abs(long - short) < 20  # digits


def test_lines_written_before_are_not_written_again(store: Any, tmp_path: Path) -> None:
    run = saved(store(), state(3))
    run.save({}, {}, State(step=4, history=[(0, {"not": 1.0})] * 4 + [(4, {"new": 2.0})]))
    assert lines(tmp_path / "run") == [*expected(3), [4, {"new": 2.0}]]


@pytest.mark.parametrize("left_behind", [b'[5, {"train/loss": 9}]\n[6, {}]\n', b'[5, {"train/lo', b""])
def test_a_kill_between_the_lines_and_their_checkpoint_leaves_no_trace(store: Any, tmp_path: Path, left_behind: bytes) -> None:
    saved(store(), state(4))
    with (tmp_path / "run" / "history.jsonl").open("ab") as stream:
        stream.write(left_behind)
    shutil.copytree(tmp_path / "run" / "step-00000004", tmp_path / "run" / ".step-00000006.partial")
    life = store()
    again, _, _ = life.resume()
    assert again == state(4)
    assert lines(tmp_path / "run") == expected(4)
    saved(life, state(6))
    assert lines(tmp_path / "run") == expected(6)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["history.jsonl", "step-00000006"]


def test_a_kill_before_the_first_checkpoint_leaves_no_trace(store: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.jsonl").write_text('[0, {"old": 1}]\n[1, {"ol')
    life = store()
    assert life.resume() is None
    saved(life, state(0))
    assert lines(tmp_path / "run") == expected(0)


CALLS = ("fsync", "mkdir", "replace", "unlink", "rmdir", "truncate", "ftruncate")


@contextmanager
def dying_at(call: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Within, that call (from 0) of those that change the disk does not come about, nor does what would have followed."""
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def called(*given: Any, **named: Any) -> Any:
            if len(done) == call:
                raise Killed
            done.append(name)
            return real(*given, **named)

        return called

    with monkeypatch.context() as patched:
        for name in CALLS:
            patched.setattr(os, name, counted(name, getattr(os, name)))
        yield done


def test_a_kill_at_any_call_of_a_save_leaves_whole_checkpoints_only(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third save writes, removes the second, and flushes. Whichever call it dies at, the next life goes on from what there was before
    or from the third, knows the best, and ends with the files of a run that never died."""
    run = tmp_path / "run"
    for call in range(60):
        shutil.rmtree(run, ignore_errors=True)
        life = saved(store(), state(1, 3.0), state(2, 4.0))
        with dying_at(call, monkeypatch) as done, suppress(Killed):
            saved(life, state(3, 5.0))
        life = store()
        assert life.best().step == 1
        again, _, _ = life.resume()
        assert again == (state(3, 5.0) if steps(run)[-1] == 3 else state(2, 4.0))
        if again.step == 2:
            saved(life, state(3, 5.0))
        saved(life, state(4, 6.0))
        assert steps(run) == [1, 4] and lines(run) == expected(4)
        assert sorted(path.name for path in run.iterdir()) == ["history.jsonl", "step-00000001", "step-00000004"]
        if len(done) < call:  # it got through
            break
    assert {"fsync", "mkdir", "replace", "unlink", "rmdir"} <= set(done) and 12 < len(done) < 59


def test_a_kill_at_any_call_of_going_back_leaves_something_to_go_on_from(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    ends: list[int] = []
    for call in range(10):
        shutil.rmtree(run, ignore_errors=True)
        saved(store(keep=9), *(state(step) for step in (1, 2, 3)))
        with dying_at(call, monkeypatch), suppress(Killed):
            store(keep=9).resume(run / "step-00000001")
        life = store(keep=9)
        again, _, _ = life.resume()
        assert again == state(again.step)
        saved(life, state(4))
        assert lines(run) == expected(4)
        ends.append(again.step)
    assert (ends[0], ends[-1]) == (3, 1)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to write beyond, as it does when a disk is full; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("large", "small", "points"),
    [({"w": mx.zeros(200_000)}, {}, 9), ({}, {"m": mx.zeros(200_000)}, 9), ({}, {}, 20_000)],
    ids=["weights", "training", "history"],
)
def test_a_disk_that_fills_up_leaves_the_checkpoints_before_it_usable(
    store: Any, tmp_path: Path, large: Any, small: Any, points: int
) -> None:
    run = tmp_path / "run"
    life = saved(store(), state(7, 2.0))
    with (
        files_no_larger_than(400_000),
        pytest.raises(TrainingError, match=r"step 8: can't save to .*step-00000008 \(.+\); .*step-00000007 is whole; make room") as error,
    ):
        life.save(large, small, state(8, 1.0, points=points))
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in run.iterdir()) == ["history.jsonl", "step-00000007"]
    checkpoint.verify(run / "step-00000007")
    saved(life, state(8, 1.0))  # there is room again
    assert lines(run) == expected(8)
    assert store().resume()[0] == state(8, 1.0)


def test_a_folder_that_vanished_is_not_made_anew_without_its_past(store: Any, tmp_path: Path) -> None:
    life = saved(store(), state(1))
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"step 2: can't save to .* \(No such file or directory\); there is none before it"):
        saved(life, state(2))
    assert not (tmp_path / "run").exists()


def test_a_history_that_was_cut_under_the_run_is_found_out(store: Any, tmp_path: Path) -> None:
    life = saved(store(), state(1))
    (tmp_path / "run" / "history.jsonl").write_text("")
    with pytest.raises(TrainingError, match=r"step 2: can't save to .* \(history\.jsonl was cut since the last save\)"):
        saved(life, state(2))


def test_a_file_where_the_folder_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(TrainingError, match=r"step 0: can't save to .* \(File exists\); there is none before it; make room or mend"):
        saved(Store(tmp_path / "run", "id", STAMP), state(0))


def test_a_mistake_of_the_program_is_not_taken_for_a_full_disk(store: Any) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        store().save({"w": object()}, {}, state(0))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it likes")
def test_a_read_only_folder_is_one_line(store: Any, tmp_path: Path) -> None:
    life = saved(store(), state(1))
    (tmp_path / "run").chmod(0o500)
    try:
        with pytest.raises(TrainingError, match=r"step 2: can't save to .* \(Permission denied\); .*step-00000001 is whole"):
            saved(life, state(2))
    finally:
        (tmp_path / "run").chmod(0o700)


@pytest.mark.parametrize("name", ["weights.safetensors", "training.safetensors", "state.json"])
def test_a_changed_file_is_found_out(store: Any, name: str) -> None:
    path = saved(store(), state(3)).at(3) / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(TrainingError, match=rf"{name} changed since it was saved; name an earlier checkpoint"):
        store().resume()


@pytest.mark.parametrize("spoil", [lambda text: text.replace("0.5", "0.6"), lambda text: text[:-5], lambda text: ""])
def test_a_changed_past_is_found_out_and_nothing_abandoned(store: Any, tmp_path: Path, spoil: Any) -> None:
    saved(store(keep=9), state(3), state(4))
    history = tmp_path / "run" / "history.jsonl"
    text = history.read_text()
    history.write_text(spoil(text[: -len('[4, {"train/loss": 0.2}]\n')]))
    with pytest.raises(TrainingError, match=r"history\.jsonl: its first \d+ bytes are not what was written"):
        store().resume(tmp_path / "run" / "step-00000003")
    assert steps(tmp_path / "run") == [3, 4]
    history.write_text(text)
    assert store().resume()[0] == state(4)


@pytest.mark.parametrize("what", STAMP)
def test_another_stamp_is_refused(store: Any, tmp_path: Path, what: str) -> None:
    saved(store(), state(1))
    with pytest.raises(TrainingError, match=f"the {what} is not the one it was saved under; start afresh with resume=null"):
        Store(tmp_path / "run", "id", STAMP | {what: "other"}).resume()


def test_going_on_from_an_earlier_one_abandons_the_later_ones_and_cuts_their_past(store: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved(store(keep=9), state(2, 2.0), state(4, 0.5), state(6, 1.5))
    life = store(keep=9)
    assert life.resume(run / "step-00000002")[0] == state(2, 2.0)
    assert lines(run) == expected(2)
    assert sorted(path.name for path in run.glob("abandoned-*")) == ["abandoned-step-00000004", "abandoned-step-00000006"]
    saved(life, state(3, 1.75))
    assert (life.best().step, life.best().why) == (3, "step 3: 1.7500 nats, the lowest of 2 saved")
    assert store().resume()[0] == state(3, 1.75) and lines(run) == expected(3)
    with pytest.raises(TrainingError, match=r"abandoned-step-00000004: not a checkpoint to go on from"):
        checkpoint.step_of(run / "abandoned-step-00000004")


def test_a_checkpoint_elsewhere_brings_its_past_along(store: Any, tmp_path: Path) -> None:
    saved(store(keep=9), state(2), state(4))
    (tmp_path / "run").rename(tmp_path / "backup")
    life = store()
    assert life.resume(tmp_path / "backup" / "step-00000002")[0] == state(2)
    saved(life, state(3))
    assert lines(tmp_path / "run") == expected(3) and lines(tmp_path / "backup") == expected(4)
    (tmp_path / "backup" / "history.jsonl").unlink()
    with pytest.raises(TrainingError, match=r"put a copy that is back in its place"):
        Store(tmp_path / "third", "id", STAMP).resume(tmp_path / "backup" / "step-00000002")


def test_saving_over_a_past_that_was_not_resumed_is_a_mistake_of_the_program(store: Any) -> None:
    saved(store(), state(1))
    with pytest.raises(AssertionError, match="resume before saving"):
        saved(store(), state(2))


def rows(loss: float, tilt: float = 0.0) -> list[tuple[float, int]]:
    """Eight rows of 10 targets; by `tilt` nats a target the odd ones are above and the even ones below `loss`."""
    return [(10 * (loss + (tilt if n % 2 else -tilt)), 10) for n in range(8)]


def test_the_last_the_best_the_lowest_and_keep_more_are_kept(store: Any, tmp_path: Path) -> None:
    """Step 2 is 0.001 above step 4, whose rows swing by 0.006 around the same: by hand, the standard error of that is
    √(8/7 · 8 · 0.06²) / 80 = 0.0023 nats. Step 1 is no candidate, and 5, 6, 7 are worse."""
    history = [(1, rows(3.0)), (2, rows(2.0)), (3, rows(2.5)), (4, rows(1.999, 0.006)), (5, rows(2.2)), (6, rows(2.3)), (7, rows(2.4))]
    states = [state(step, float(np.mean([loss for loss, _ in each]) / 10), each) for step, each in history]
    life = saved(store(), *states)
    assert steps(tmp_path / "run") == [2, 4, 7]
    assert life.best().why == "step 2: 2.0000 nats, within the noise (0.0023) of the lowest, 1.9990 at step 4, and earlier"
    assert (life.best().path, life.best().step, life.best().loss) == (life.at(2), 2, pytest.approx(2.0))
    shutil.rmtree(tmp_path / "run")
    saved(store(keep=2), *states)
    assert steps(tmp_path / "run") == [2, 4, 5, 6, 7]


def test_one_that_was_not_evaluated_is_kept_as_the_last_only(store: Any, tmp_path: Path) -> None:
    life = saved(store(), state(1))
    assert life.best() is None
    saved(life, state(2, 5.0), state(3))
    assert (steps(tmp_path / "run"), life.best().why) == ([2, 3], "step 2: 5.0000 nats, the lowest of 1 saved")


def test_the_choice_counts_those_removed_since_and_those_of_earlier_lives(store: Any, tmp_path: Path) -> None:
    saved(store(), *(state(step, 9.0 - step) for step in range(4)))
    life = store()
    life.resume()
    saved(life, state(4, 8.5))
    assert (steps(tmp_path / "run"), life.best().why) == ([3, 4], "step 3: 6.0000 nats, the lowest of 5 saved")


def test_copies_under_other_names_are_nobody_s(store: Any, tmp_path: Path) -> None:
    saved(store(), state(1))
    shutil.copytree(tmp_path / "run" / "step-00000001", tmp_path / "run" / "step-00000009.bak")
    assert store().last_step() == 1
