"""What libraries draw with tqdm, told as forge tells its own work. Costs a line of text for each thing that is counted."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from forge.progress import Work

Names = Mapping[str, str]


@contextmanager
def told(work: Work, modules: Mapping[str, Names]) -> Iterator[None]:
    """Within it, what these modules count with tqdm moves `work` instead ("layer 3 of 12"), and what they write beside it goes nowhere.

    modules: dotted names, each with what its bars count, by their descriptions; "" for a bar without one.
    """
    with ExitStack() as stack:
        for module, names in modules.items():
            stack.enter_context(patch(f"{module}.tqdm", _bar(work, names), create=True))
        yield


def _bar(work: Work, names: Names) -> type:
    class Bar:
        def __init__(self, iterable: Iterable[Any], desc: str = "", total: int | None = None, **_: Any):
            self._iterable, self._name = iterable, names.get(desc, desc)
            self._total = len(iterable) if isinstance(iterable, Sized) else total  # their totals leave out a last batch that is not full

        def __iter__(self) -> Iterator[Any]:
            for number, each in enumerate(self._iterable, start=1):
                if self._total is None:
                    work.at(f"{self._name} {number:,}")
                else:
                    total = max(self._total, number)
                    work.at(f"{self._name} {number:,} of {total:,}", (number - 1) / total)
                yield each

        def set_description(self, *_: Any, **__: Any) -> None:
            """The name stays."""

        @staticmethod
        def write(*_: Any, **__: Any) -> None:
            """Nothing is written."""

    return Bar
