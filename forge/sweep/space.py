"""What a search may vary, read from Hydra's sweep syntax: values (a,b,c, choice, range) and intervals, as they are or by their logarithm.

Numbers are searched in their order, so that each tells about its neighbours; other values have none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType

from forge.errors import ConfigError

Parameter = int | float  # of Values: which one; of an Interval: the number itself

_TAGS = {"log", "int"}


@dataclass(frozen=True)
class Values:
    """`texts`: as overrides write them; `ordered`: numbers, from low to high. `ends`: one kind of number, so that the first and the last
    show whether all are valid.
    """

    key: str  # as typed, with its plus
    texts: tuple[str, ...]
    ordered: bool
    ends: bool

    def text(self, parameter: Parameter) -> str:
        return self.texts[int(parameter)]

    def probes(self) -> tuple[str, ...]:
        return (self.texts[0], self.texts[-1]) if self.ends else self.texts


@dataclass(frozen=True)
class Interval:
    """Both bounds belong to it. `log`: its logarithm is searched evenly. `whole`: integers alone."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    def text(self, parameter: Parameter) -> str:
        return str(int(parameter) if self.whole else self.value(parameter))

    def value(self, parameter: Parameter) -> float:
        """Four digits tell two settings apart, and make a name that can be read."""
        short = float(f"{parameter:.4g}")
        return short if self.low <= short <= self.high and not self.whole else parameter

    def probes(self) -> tuple[str, ...]:
        return (self.text(self.low), self.text(self.high))


Dimension = Values | Interval


@dataclass(frozen=True)
class Space:
    """`fixed`: the overrides that all jobs share."""

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(_bare(dimension.key) for dimension in self.dimensions)

    @property
    def size(self) -> int | None:
        """How many jobs there are in all; None where an interval has no number of them."""
        sizes = [len(dimension.texts) for dimension in self.dimensions if isinstance(dimension, Values)]
        return math.prod(sizes) if len(sizes) == len(self.dimensions) else None

    def swept(self, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
        """The overrides that parameters (by bare key) stand for."""
        return tuple(f"{dimension.key}={dimension.text(parameters[_bare(dimension.key)])}" for dimension in self.dimensions)

    def probes(self) -> list[list[str]]:
        """The overrides of jobs that show whether all are valid: each value and bound once, with the others at their first."""
        first = [f"{dimension.key}={dimension.probes()[0]}" for dimension in self.dimensions]
        jobs = [first]
        for number, dimension in enumerate(self.dimensions):
            jobs += [[*first[:number], f"{dimension.key}={text}", *first[number + 1 :]] for text in dimension.probes()[1:]]
        return [[*self.fixed, *job] for job in jobs]

    def point(self, number: int) -> dict[str, Parameter]:
        """The parameters of one of the `size` jobs."""
        parameters: dict[str, Parameter] = {}
        for key, dimension in zip(self.keys, self.dimensions, strict=True):
            assert isinstance(dimension, Values)
            number, parameters[key] = divmod(number, len(dimension.texts))
        return parameters

    def require_finite(self) -> None:
        """Raises ConfigError where a grid has no end."""
        lines = [f"{key}: an interval is no grid" for key, of in zip(self.keys, self.dimensions, strict=True) if isinstance(of, Interval)]
        if lines:
            raise ConfigError("\n".join(f"{line}; list its values, as 1e-4,1e-3 or range(1,9,2), or take sweep=tpe" for line in lines))


def read(overrides: Sequence[Override]) -> Space:
    """The space of a command line, and of an experiment's hydra.sweeper.params before it. Of two overrides of a key the later one counts.

    Raises ConfigError, a line for each key that can't be searched.
    """
    last = {_bare(override.get_key_element()): override for override in overrides}
    fixed = tuple(override.input_line or "" for override in overrides if not override.is_sweep_override())
    dimensions, problems = [], []
    for override in last.values():
        if override.is_sweep_override():
            try:
                dimensions.append(_dimension(override))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    if not dimensions:
        raise ConfigError("a search needs keys to vary, such as trainer.micro_batch=4,8 or 'optimizer.lr=tag(log, interval(1e-4, 1e-2))'")
    return Space(fixed, tuple(dimensions))


def _dimension(override: Override) -> Dimension:
    key, sweep = override.get_key_element(), override.value()
    name = _bare(key)
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise ConfigError(f"{name}: a glob can't be searched; write its options out, with commas")
    tags: set[str] = getattr(sweep, "tags", set())
    if unknown := tags - _TAGS:
        raise ConfigError(f"{name}: tag {', '.join(sorted(unknown))} means nothing to a search (valid: {', '.join(sorted(_TAGS))})")
    if isinstance(sweep, IntervalSweep):
        return _interval(key, name, sweep)
    if getattr(sweep, "shuffle", False):
        raise ConfigError(f"{name}: shuffle() has no place in a search, which chooses the order itself")
    if tags:
        raise ConfigError(f"{name}: tags are for intervals, as tag(log, interval(1e-4, 1e-2)); listed numbers are searched in their order")
    return _values(key, name, override)


def _values(key: str, name: str, override: Override) -> Values:
    found: dict[Any, str] = {}
    numbers = True
    for value, text in zip(override.sweep_iterator(), override.sweep_string_iterator(), strict=True):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        numbers &= is_number
        found.setdefault(value if is_number else text, text)
    if not found:
        raise ConfigError(f"{name}={override.get_value_string()}: holds no value")
    texts = [found[number] for number in sorted(found)] if numbers else list(found.values())
    return Values(key, tuple(texts), numbers, override.is_range_sweep())


def _interval(key: str, name: str, sweep: IntervalSweep) -> Interval:
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None and high is not None
    whole = "int" in sweep.tags or isinstance(low, int)  # int(interval(…)) leaves integers
    if not math.isfinite(high - low) or low >= high:
        raise ConfigError(f"{name}: interval({low:g}, {high:g}) has to go from a number to a higher one")
    if log and low <= 0:
        raise ConfigError(f"{name}: interval({low:g}, {high:g}) has no logarithm at its lower bound; begin above 0")
    if whole and (low != int(low) or high != int(high)):
        raise ConfigError(f"{name}: interval({low:g}, {high:g}) is tagged int, so its bounds have to be integers")
    return Interval(key, low, high, log, whole)


def _bare(key: str) -> str:
    return key.lstrip("+~")
