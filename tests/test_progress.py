"""A run in the terminal: what its lines say, that they fit, how good the time left is, and that a terminal is left as it was."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from forge import bars, progress
from forge.progress import Course, Display, Thinned, Work, clock, curve, size, spark
from forge.spec import Metrics

ROOT = Path(__file__).parents[1]


def test_a_line_of_blocks_by_hand() -> None:
    """Of eight heights, 4 of 8 is the fourth; each of four characters is the mean of two of eight values."""
    assert spark([0, 4, 8, 4], width=4) == " ▄█▄"
    assert spark([0, 0, 2, 6, 8, 8, 3, 5], width=4) == " ▄█▄"
    assert spark([3.0]) == "█"
    assert spark([0.0, 0.0]) == "  "
    assert spark([]) == ""
    assert spark([4, 6, 8], low=4) == " ▄█"


def test_of_a_loss_the_lowest_is_a_block_too() -> None:
    """From 7 to 13 with a sixth below: of 7 nats, 1 is the first eighth of 8 · 1/7 = 1.1, and 4 is 8 · 4/7 = 4.6."""
    assert curve([13, 10, 7], 3) == "█▅▁"


def test_times_and_sizes_by_hand() -> None:
    assert (clock(0.4), clock(75), clock(3599.6), clock(4000), clock(-1)) == ("0:00", "1:15", "1:00:00", "1:06:40", "0:00")
    assert (size(1.5), size(0.0123)) == ("1.50 GiB", "12.6 MiB")


def test_a_long_curve_is_kept_in_few_values() -> None:
    """0 … 99,999: means of 256 neighbours, the first of them (0 + 255)/2."""
    thinned = Thinned()
    for value in range(100_000):
        thinned.add(value)
    assert 200 <= len(thinned.values) < 400
    assert thinned.values[0] == 127.5
    assert {b - a for a, b in pairwise(thinned.values)} == {256.0}


def emitted(
    steps: int = 100,
    every: int = 10,
    step_s: float = 0.3,
    eval_s: float = 1.5,
    base_s: float = 60.0,
    save_s: float = 0.2,
    log_every: int = 1,
) -> Iterator[tuple[float, int, Metrics]]:
    """(seconds since the start, step, metrics) as the engine emits them: at each evaluation a checkpoint is saved afterwards."""
    seconds = eval_s + base_s
    yield seconds, 0, {"val/loss": 5.0, "perf/eval_s": eval_s, "perf/full_eval_s": base_s}
    seconds += save_s
    for step in range(1, steps + 1):
        seconds += step_s
        metrics: dict[str, float] = {}
        if step % log_every == 0 or step == steps:
            metrics |= {"train/loss": 5 - step / 100, "perf/tokens_per_s": 1234.5, "memory/peak_gib": 2.0}
            metrics |= {"perf/eta_s": seconds / step * (steps - step)}
        if step % every == 0 or step == steps:
            seconds += eval_s
            metrics |= {"val/loss": 5 - step / 100 + (step > 60), "perf/eval_s": eval_s}
        if metrics:
            yield seconds, step, metrics
        seconds += save_s * (step % every == 0)


def test_the_time_left_runs_down_between_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    course = Course(100)
    assert course.left() is None
    course.take({"perf/eta_s": 30.0}, 50)
    assert course.left() == pytest.approx(30)
    now[0] = 12.0
    assert course.left() == pytest.approx(18)
    now[0] = 99.0
    assert course.left() == 0


@pytest.fixture
def half() -> Course:
    course = Course(100_000)
    for _, step, metrics in emitted():
        course.take(metrics, step * 1000)
    return course


@pytest.mark.parametrize("width", [20, 40, 60, 80, 300])
def test_no_line_is_wider_than_the_terminal(half: Course, width: int) -> None:
    lines = [line.plain for line in half.lines(width, 123456.0)]
    assert len(lines) == 4
    assert max(map(len, lines)) <= min(width, 100)


def test_the_lines_say_where_the_run_is(half: Course) -> None:
    """Validation rose by 1 after step 60: 4.4 there, and 5 at the end."""
    lines = [" ".join(line.plain.split()) for line in half.lines(100, 75.0)]
    assert re.fullmatch(r"training ━+ 100,000/100,000 1:15", lines[0])
    assert re.fullmatch(r"loss 4.000 [▁-█]+", lines[1])
    assert lines[2:] == ["validation 5.000 at step 100,000 lowest 4.400 at step 60,000", "speed 1,234 tokens/s 2.00 GiB"]


def test_before_the_first_step_there_is_little_to_say() -> None:
    course = Course(10)
    assert [line.plain[:8] for line in course.lines(60)] == ["training"]
    assert course.line() == "step 0/10  eta -"
    course.take({"val/loss": 5.0}, 0)
    assert course.line() == "step 0/10  val 5.000 (lowest)  eta -"


def test_into_a_file_a_line_goes_at_each_evaluation_and_every_15_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run resumed at 20: what its earlier life emitted gets no line. From there on 0.3 s a step, 1.5 s an evaluation."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Display(100, first_step=20) as display:
        for at, step, metrics in emitted(every=80):
            now[0] = at - 61.5
            display.show(metrics, step)
    lines = capsys.readouterr().out.splitlines()
    # Steps of 0.3 s; the first line after more than 15 s at step 50, 15.2 s after the start; then step 80 and the end.
    assert [line.split("  ")[0] for line in lines] == ["step 50/100", "step 80/100", "step 100/100"]
    pattern = r"step \d+/100  loss \d\.\d{3}  val \d\.\d{3}( \(lowest\))?  1,234 tokens/s  2\.00 GiB  eta \d+:\d\d"
    assert all(re.fullmatch(pattern, line) for line in lines), lines


def test_long_work_gets_a_line_every_15_seconds_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """4 MB at 0.1 MB/s; then, of a library that counts layers without knowing of the last, one each 10 s. Its own words go nowhere."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Work("tokenising a", 4_000_000) as work:
        for now[0] in (10.0, 20.0, 30.0, 40.0):
            work.done(1_000_000)
    module = ModuleType("counting")
    monkeypatch.setitem(sys.modules, "counting", module)
    with Work("awq") as work, bars.told(work, {"counting": {"Quantizing": "layer"}}):
        for now[0] in module.tqdm((50.0, 60.0, 70.0), total=2, desc="Quantizing"):
            module.tqdm.write("noise")
        for now[0] in module.tqdm(iter((80.0, 90.0, 100.0)), desc="odd"):
            pass
    assert not hasattr(module, "tqdm")
    assert capsys.readouterr().out.splitlines() == [
        "tokenising a: 2 of 4 MB, 0.1 MB/s",
        "tokenising a: 4 of 4 MB, 0.1 MB/s",
        "awq: layer 3 of 3",
        "awq: odd 2",
    ]


WORK = """
import io, time
from contextlib import redirect_stdout
from forge.progress import Display, Work
with Work("awq") as work, redirect_stdout(io.StringIO()):
    for block in (1, 2):
        print("noise")
        work.at(f"block {block} of 2", (block - 1) / 2)
        time.sleep(0.4)
print("between")
with Display(10), Work("inside") as work:
    work._last_line -= 60
    work.at("1 of 2", 0.5)
    time.sleep(0.2)
"""


def test_long_work_moves_on_a_terminal_and_is_lines_inside_another_display() -> None:
    code, out = on_a_terminal(80, 60.0, WORK)
    assert code == 0
    first, _, second = out.partition("between")
    assert "awq: block 1 of 2" in first and "awq: block 2 of 2" in first and "noise" not in out
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", second)
    assert re.search(r"^inside: 1 of 2\s*$", plain, re.MULTILINE) and "training" in plain


SCRIPT = """
import time
from forge.progress import Display
with Display(1000) as display:
    for step in range(1, 1000):
        metrics = {"train/loss": 5 - step / 1000, "perf/eta_s": 9.0, "perf/tokens_per_s": 1e5}
        display.show(metrics | ({} if step % 5 else {"val/loss": 4.0}), step)
        time.sleep(0.02)
"""


def on_a_terminal(columns: int, interrupt_after: float, script: str = SCRIPT) -> tuple[int, str]:
    """The script's exit code, and all that it wrote to a terminal."""
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    out, end = b"", None
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        out += chunk
        end = end or (time.monotonic() + interrupt_after if b"validation" in out else None)
        if end and time.monotonic() > end:
            process.send_signal(signal.SIGINT)
            end = float("inf")
    os.close(master)
    return process.wait(timeout=20), out.decode()


def test_a_terminal_is_left_as_it_was_after_ctrl_c() -> None:
    code, out = on_a_terminal(60, 1.2)
    assert code == -signal.SIGINT
    shown, hidden = out.rfind("\x1b[?25h"), out.rfind("\x1b[?25l")
    assert 0 <= hidden < shown  # the cursor is back
    assert "\x1b[?1049h" not in out  # and what stood on the screen was never put away
    assert "validation" in out[:shown] and "KeyboardInterrupt" in out[shown:]
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in out[:shown].splitlines()]
    assert max(map(len, plain)) <= 60
    assert out.count("training") >= 3  # it moved


def test_what_is_drawn_twice_a_second_costs_little() -> None:
    course = Course(200_000)
    for step in range(20_000):
        course.take({"train/loss": 3.0, "perf/eta_s": 5.0, **({"val/loss": 3.0, "perf/eval_s": 1.0} if step % 1000 == 0 else {})}, step + 1)
    started = time.perf_counter()
    assert len(list(course.lines(80))) == 3
    assert time.perf_counter() - started < 0.05
    assert len(course.losses.values) < progress._POINTS
