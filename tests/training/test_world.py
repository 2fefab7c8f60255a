"""Data parallel training: processes started by mlx.launch make the steps that one makes, and end together."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forge  # noqa: F401  (before mlx)
from forge.spec import Batch
from forge.training.world import World, world

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "worlds"
_SOON_S = 30.0  # within which processes end once one of them has, on a busy machine
_LONG_S = 60.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start(processes, program, *arguments): under mlx.launch, on ports of its own. What is left is killed at the end."""
    launched = []

    def run(processes: int, program: str, *arguments: str) -> subprocess.Popen[str]:
        launcher = [str(Path(sysconfig.get_path("scripts"), "mlx.launch")), "-n", str(processes), "--backend", "ring"]
        command = [*launcher, "--starting-port", str(_free_ports(processes)), "--", sys.executable, str(PROGRAMS / program), str(tmp_path)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        launched.append(subprocess.Popen([*command, *arguments], env=environment, start_new_session=True, **pipes))
        return launched[-1]

    yield run
    for process in launched:
        if process.poll() is None:
            os.killpg(process.pid, 9)
        process.communicate()


def _free_ports(number: int) -> int:
    """The first of so many ports in a row that nothing listens on, below those that the system hands out."""
    for first in range(20000 + os.getpid() % 900 * 10, 32000, 10):
        try:
            for port in range(first, first + number):
                with socket.socket() as attempt:
                    attempt.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise RuntimeError("no free ports")


def results(folder: Path, processes: int) -> list[Any]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_the_joined_batches(start: Callable[..., Any], tmp_path: Path) -> None:
    process = start(2, "steps.py")
    expected = joined_losses(runpy.run_path(str(PROGRAMS / "steps.py")))
    output, _ = process.communicate(timeout=_LONG_S)
    assert process.returncode == 0, output
    (losses, weights), (other_losses, other_weights) = results(tmp_path, 2)
    assert len(losses) == 5
    assert losses == pytest.approx(expected, abs=1e-5)
    assert (losses, weights) == (other_losses, other_weights)


def joined_losses(program: dict[str, Any]) -> list[float]:
    """All rows of a step at once, their mean loss differentiated: no sums, no World."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optimizers

    from forge.training.objectives import causal_lm

    def mean(model: nn.Module, batch: Batch) -> mx.array:
        loss, (count, _) = causal_lm(model, batch)
        return loss / count

    model, optimizer, losses = program["make_model"](), optimizers.AdamW(1e-2, bias_correction=True), []
    for batches in program["make_steps"]():
        tokens, mask, segments = (np.concatenate([getattr(b, name) for b in batches]) for name in ("tokens_BT", "mask_BT", "segments_BT"))
        loss, gradients = nn.value_and_grad(model, mean)(model, Batch(tokens, mask, segments, ("row",) * len(tokens)))
        optimizer.update(model, gradients)
        mx.eval(loss, model.parameters(), optimizer.state)
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_three_processes_get_the_same_from_each_collective(start: Callable[..., Any], tmp_path: Path) -> None:
    """Messages: the sums of 0 + r, 1 + r, … over r = 0, 1, 2. In bf16 256 + 1 + 1 stays 256, in fp32 it is 258, which bf16 holds."""
    process = start(3, "values.py")
    output, _ = process.communicate(timeout=_LONG_S)
    assert process.returncode == 0, output
    found = results(tmp_path, 3)
    assert [each.pop("world") for each in found] == [[0, 3, 3], [1, 3, 3], [2, 3, 3]]
    assert found[0]["messages"] == {name: [3.0 * number + 3] * 10 for number, name in enumerate("abcd")}
    assert found[0]["total"] == [[258.0, 3 * 2**24 + 3], [0, 3], 1.5]
    assert found[0]["types"] == [f"mlx.core.{name}" for name in ("bfloat16", "int32", "float32", "float32")]
    assert found[0]["given"] == {"w": [float(np.float32(0.1)), -2.0], "step": 7}
    assert found[0]["agree"] == ["run é 0", None, "", "x" * 10**5]
    assert found[0]["any"] == [None, "reason 1"]
    assert found[0]["join"] == [[item, item / 3] for item in range(7)]
    assert re.fullmatch(r"the processes of this run don't have the same weights: .*", found[0]["same"])
    assert found[0]["turns"] in ("012", "021")
    assert [{**each, "turns": None} for each in found[1:]] == [{**found[0], "turns": None}] * 2
    assert re.findall(r"process \d prints", output) == ["process 0 prints"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [("raise", "error: this process fails"), ("kill", "rank 1 exited with code -9"), ("deaf", "rank 0 exited with code 5")],
)
def test_a_process_that_dies_ends_the_others(start: Callable[..., Any], tmp_path: Path, how: str, said: str) -> None:
    process = start(2, "ends.py", how)
    output, _ = process.communicate(timeout=_LONG_S)
    died, ended = tmp_path / "1.running", tmp_path / "0.ended"
    assert said in output
    assert ended.read_text().startswith("5 process 1 of 2 lost the others: ")  # TrainingError's exit code
    assert "rank 0 exited with code" in output
    assert ended.stat().st_mtime - died.stat().st_mtime < _SOON_S


@pytest.mark.slow
def test_what_is_left_by_a_killed_launcher_stops_as_on_a_signal(start: Callable[..., Any], tmp_path: Path) -> None:
    process = start(2, "ends.py", "")
    _wait_for(tmp_path / "0.running", tmp_path / "1.running")
    process.kill()
    _wait_for(tmp_path / "0.ended", tmp_path / "1.ended")
    by_signal, by_the_other = "143 stopped by signal 15", "130 stopped by SIGTERM"
    ended = {(tmp_path / f"{rank}.ended").read_text() for rank in (0, 1)}
    assert by_signal in ended <= {by_signal, by_the_other}


@pytest.mark.slow
def test_processes_of_two_launchers_do_not_train_together(tmp_path: Path) -> None:
    """A shell between this process and the second one gives that one another parent."""
    first = _free_ports(2)
    (tmp_path / "hosts").write_text(json.dumps([[f"127.0.0.1:{first}"], [f"127.0.0.1:{first + 1}"]]))
    settings = os.environ | {"PYTHONPATH": str(ROOT), "MLX_HOSTFILE": str(tmp_path / "hosts")}
    command = [sys.executable, str(PROGRAMS / "ends.py"), str(tmp_path), ""]
    own = [command, ["sh", "-c", '"$@"; exit $?', "sh", *command]]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen(each, env=settings | {"MLX_RANK": str(rank)}, **pipes) for rank, each in enumerate(own)]
    for process in started:
        output, _ = process.communicate(timeout=_LONG_S)
        assert process.returncode == 5
        assert "processes of two mlx.launch met on the same ports" in output


def _wait_for(*files: Path) -> None:
    end = time.monotonic() + _SOON_S
    while not all(file.exists() for file in files):
        assert time.monotonic() < end, [file.name for file in files if not file.exists()]
        time.sleep(0.05)


def make_batch(lengths: list[int]) -> Batch:
    """A row for each length, whose tokens are its number; all but the first of each are targets."""
    width = max(lengths)
    segments = np.array([[1] * length + [0] * (width - length) for length in lengths], np.int32)
    tokens = segments * np.arange(1, len(lengths) + 1, dtype=np.int32)[:, None]
    mask = (segments > 0) & (np.arange(width) > 0)
    names = tuple(f"row {number}" for number in range(len(lengths)))
    return Batch(tokens, mask, segments, names, tuple(name.upper() for name in names))


@pytest.mark.parametrize(
    ("lengths", "together", "size", "expected"),
    [
        ([5, 5, 5, 5], 1, 2, [[0, 3], [1, 2]]),
        ([2, 9, 3, 8, 7], 1, 2, [[0, 1, 2], [3, 4]]),  # 9 | 8 7 | 3 2 |
        ([2, 9, 3, 8, 7, 4], 2, 2, [[2, 3, 4, 5], [0, 1]][::-1]),  # pairs of length 9, 8, 7: 9 | 8 7 |
        ([4, 5], 1, 3, [[1], [0], []]),
    ],
)
def test_rows_are_dealt_out_by_length_each_to_one_process(lengths: list[int], together: int, size: int, expected: list[list[int]]) -> None:
    batch = make_batch(lengths)
    for rank, rows in enumerate(expected):
        part = World(rank, size).share_batch(batch, together)
        if rows:
            assert part.row_ids == tuple(f"row {row}" for row in rows)
            assert part.sources == tuple(f"ROW {row}" for row in rows)
            for name in ("tokens_BT", "mask_BT", "segments_BT"):
                assert np.array_equal(getattr(part, name), getattr(batch, name)[rows])
        else:
            assert (part.targets, len(part.tokens_BT)) == (0, together)
            assert part.segments_BT.any(), "a row of padding alone has nothing to attend to"


def test_whole_micro_batches_are_dealt_out_where_they_go_round() -> None:
    batches = [make_batch([4, 3]), make_batch([6, 5]), make_batch([2, 2]), make_batch([3, 3])]
    assert World(1, 2).share_step(batches) == [batches[1], batches[3]]
    assert [len(part.tokens_BT) for part in World(1, 2).share_step(batches[:3])] == [1, 1, 1]


def test_one_process_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLX_RANK", raising=False)
    alone = world()
    tree, batch = {"w": object()}, make_batch([3, 2])
    assert alone == World(0, 1) and alone.first
    assert alone.total(tree) is tree and alone.give(tree) is tree
    assert alone.share_batch(batch) is batch
    assert [alone.agree("text"), alone.any("reason"), alone.any(None)] == ["text", "reason", None]
    assert alone.join(list(alone.share([1, 2, 3]))) == [1, 2, 3]
    alone.require_same("data", "d")
    with alone.in_turn(), alone.quiet(), alone.telling(print):
        alone.barrier()
    (tmp_path / "hosts").touch()  # what `mlx.launch -n 1` gives
    monkeypatch.setenv("MLX_RANK", "0")
    monkeypatch.setenv("MLX_HOSTFILE", str(tmp_path / "hosts"))
    assert world() == World(0, 1)
