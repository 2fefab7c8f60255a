"""What forge.doctor looks at: each check is a function that says what it found, and where that is no good, what to do.

A check changes nothing of the user's, and raises nothing that a user could have caused. Most cost milliseconds; the self-test trains.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from forge.errors import ForgeError

State = Literal["ok", "off", "note", "problem"]  # off: something optional that is not there


@dataclass(frozen=True)
class Finding:
    """`said` is what was found, `way_out` what to do about it (empty where there is nothing to do), `seconds` what a timed check took."""

    name: str
    state: State
    said: str
    way_out: str = ""
    seconds: float | None = None


Check = Callable[[], Iterable[Finding]]


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """What the check finds; where it fails itself, that, so that the rest is still looked at."""
    try:
        yield from check()
    except ForgeError as error:
        said, _, way_out = str(error).partition("; ")
        yield Finding(name, "problem", said, way_out or "mend that first")
    except Exception as error:  # a look at a broken machine may end in anything
        why = " ".join(str(error).split()) or "no more is known"
        yield Finding(name, "problem", f"can't be looked at: {type(error).__name__}: {why}", REINSTALL)


REINSTALL = "install forge anew, with the versions of constraints.txt; if it stays, report it with this line"
