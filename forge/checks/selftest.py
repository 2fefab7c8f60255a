"""The self-test: trains, resumes, fuses, quantises and serves a tiny model in a temporary root, so that nothing of the user's is touched.

Takes some 10 s on a quiet machine, and a minute on a busy one. A check that fails says what to do, and the others go on.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forge.checks import REINSTALL, Finding, State

if TYPE_CHECKING:
    from forge.checks.toy import Toy

_TRUST = "don't trust what is trained here: unset MLX_* and OPENBLAS_* variables and try again; else " + REINSTALL
_FAST = "look at the lines on BLAS above, and at what else is running; then run this again"


@dataclass(frozen=True)
class _Test:
    """`failed`: what a failure is; a note where forge still works. `way_out`: what to do then."""

    name: str
    check: "Callable[[Toy], tuple[bool, str]]"
    way_out: str = _TRUST
    failed: State = "problem"


def tests() -> tuple[_Test, ...]:
    """In the order in which they run. Imports MLX."""
    from forge.checks import giving, learning

    release = "don't release from this machine: " + REINSTALL
    return (
        _Test("matrix product", giving.products_are_fast, _FAST, "note"),
        _Test("masks", learning.masks_hold_the_end_of_turn, "answers would not end where they are trained so: " + REINSTALL),
        _Test("adapter's start", learning.adapter_starts_as_the_base),
        _Test("packed rows", learning.packed_equals_unpacked, "set data.packing=bucket; and " + REINSTALL),
        _Test("overfit one batch", learning.overfits),
        _Test("resume", learning.resumes_as_if_never_stopped, "don't count on resume=auto here: " + REINSTALL),
        _Test("quantised base", learning.quantised_base_is_untouched, "don't train on quantised bases here: " + REINSTALL),
        _Test("fused model", giving.fused_equals_adapter, release),
        _Test("served model", giving.serves_what_the_model_says, release),
        _Test("memory", giving.memory_is_given_back, "set trainer.memory_limit, so that a run ends before the machine; " + REINSTALL),
    )


def run() -> Iterator[Finding]:
    """Each finding as soon as it is there."""
    try:
        with tempfile.TemporaryDirectory(prefix="forge-doctor-", ignore_cleanup_errors=True) as folder, _root(Path(folder)):
            yield from _all(Path(folder))
    except OSError as error:  # no folder to test in
        said = f"nothing can be kept among temporary files ({error.strerror or error})"
        yield Finding("self-test", "problem", said, "make room there, or set TMPDIR to another folder")


def _all(folder: Path) -> Iterator[Finding]:
    made: list[Toy] = []

    def make() -> tuple[bool, str]:
        from forge.checks import toy

        made.append(toy.make(folder))
        return True, "a tiny model and its data are made"

    yield _run("preparation", make, REINSTALL)
    if not made:
        return
    for test in tests():
        yield _run(test.name, lambda check=test.check: check(made[0]), test.way_out, test.failed)  # type: ignore[misc]


def _run(name: str, check: Callable[[], tuple[bool, str]], way_out: str, failed: State = "problem") -> Finding:
    began = time.perf_counter()
    try:
        with redirect_stdout(io.StringIO()):
            well, said = check()
    except Exception as error:  # any failure of what is tested is a finding
        why = " ".join(str(error).split())
        well, failed, said = False, "problem", f"{type(error).__name__}: {why}"
    seconds = time.perf_counter() - began
    return Finding(name, "ok", said, "", seconds) if well else Finding(name, failed, said, way_out, seconds)


@contextmanager
def _root(folder: Path) -> Iterator[None]:
    """Within, forge's root is `folder`."""
    before = os.environ.get("FORGE_HOME")
    os.environ["FORGE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FORGE_HOME"]
        else:
            os.environ["FORGE_HOME"] = before
