"""Sources of rows: source(*, knobs) -> Iterable[Row]. One function and one YAML each.

What a source returns may have a `fingerprint`, text that changes whenever its rows may: then it is read only when it has to be.
"""

import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from forge.spec import Row

R = TypeVar("R", bound=Row)

PYTHON = f"{sys.version} {sysconfig.get_paths()['stdlib']}"  # what the built-in sets are made from


@dataclass(frozen=True)
class Fixed(Generic[R]):
    """Rows that are the same as long as `fingerprint` is."""

    rows: Callable[[], Iterable[R]]
    fingerprint: str

    def __iter__(self) -> Iterator[R]:
        return iter(self.rows())
