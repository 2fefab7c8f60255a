"""What ends an entry, as the shell sees it."""

import subprocess
import sys

import pytest

from forge.entry import entry
from forge.errors import DataError, Stopped


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("a.txt: is empty\nb.txt: is empty"), 3, "error: a.txt: is empty\nerror: b.txt: is empty\n"),
        (Stopped(15), 143, "forge: stopped by signal 15; what was saved is kept, and resume=auto goes on from it\n"),
        (KeyboardInterrupt(), 130, "forge: interrupted\n"),
    ],
)
def test_an_end_is_a_line_and_a_code(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry(lambda argv: raising(error), []) == code
    assert capsys.readouterr() == ("", said)


def test_the_arguments_go_in_and_the_code_comes_out() -> None:
    assert entry(len, ["a", "b"]) == 2


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        entry(lambda argv: 1 // 0, [])


def test_a_reader_that_leaves_ends_nothing() -> None:
    """As in `| head`: without care the next line would be a BrokenPipeError."""
    body = "import sys, time\nfrom forge.entry import entry\n"
    body += "def say(argv):\n    sys.stdin.read()\n    [print('x' * 100_000, flush=True) for _ in range(3)]\n    return 0\n"
    process = subprocess.Popen([sys.executable, "-c", body + "sys.exit(entry(say, []))"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    process.stdout.close()
    process.stdin.close()  # go on
    assert process.wait(timeout=60) == 0
