"""The space that a command line gives to a search. SWP-4."""

import itertools
from collections.abc import Sequence

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from forge.errors import ConfigError
from forge.sweep.space import Interval, Space, read


def space(*overrides: str) -> Space:
    return read(OverridesParser.create().parse_overrides(list(overrides)))


def texts(override: str) -> list[str]:
    """What the key of one override may become, in the space's order."""
    found = space(override)
    assert found.size is not None
    return [found.swept(found.point(number))[0].partition("=")[2] for number in range(found.size)]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=8,1e-3,4", ["0.001", "4", "8"]),  # numbers: from low to high
        ("a.b=choice(2,1,2.0)", ["1", "2"]),
        ("a.b=range(1,8,3)", ["1", "4", "7"]),
        ("a.b=range(3,0,-1)", ["1", "2", "3"]),
        ("a.b=muon,adamw,muon", ["muon", "adamw"]),  # words: as typed
        ("a.b=true,false", ["True", "False"]),
        ("a.b=null,0.99", ["null", "0.99"]),
        ("a.b='x, y',\"it's\"", ["'x, y'", '"it\'s"']),
        ("+a@b=choice(x)", ["x"]),
    ],
)
def test_values_are_what_may_be_written_behind_the_key(override: str, expected: Sequence[str]) -> None:
    assert texts(override) == expected


@pytest.mark.parametrize(
    ("override", "interval"),
    [
        ("k=interval(1,10)", Interval("k", 1, 10, log=False, whole=False)),
        ("+k=tag(log, interval(1e-4,1e-2))", Interval("+k", 1e-4, 1e-2, log=True, whole=False)),
        ("k=tag(int, log, interval(1,64))", Interval("k", 1, 64, log=True, whole=True)),
        ("k=int(interval(1.5,8))", Interval("k", 1, 8, log=False, whole=True)),
    ],
)
def test_intervals_have_bounds_and_a_scale(override: str, interval: Interval) -> None:
    assert space(override).dimensions == (interval,)


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("k=glob(*)", "k: a glob can't be searched"),
        ("k=shuffle(1,2)", "k: shuffle"),
        ("k=tag(logg, interval(1,2))", "k: tag logg means nothing to a search .valid: int, log."),
        ("k=tag(log, choice(1,2))", "k: tags are for intervals"),
        ("k=range(2,2)", "k=range.2,2.: holds no value"),
        ("k=interval(2,2)", "k: interval.2, 2. has to go from a number to a higher one"),
        ("k=interval(1,inf)", "k: interval.1, inf. has to go"),
        ("k=tag(log, interval(0,1))", "k: interval.0, 1. has no logarithm"),
        ("k=tag(int, interval(0.5,2))", "k: interval.0.5, 2. is tagged int"),
        ("k=1", "a search needs keys to vary"),
    ],
)
def test_what_cannot_be_searched_is_told_in_a_line(override: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        space(override)
    assert "\n" not in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^a: a glob.*\nb: shuffle"):
        space("a=glob(*)", "b=shuffle(1,2)", "c=1,2")


def test_of_two_overrides_of_a_key_the_later_one_counts() -> None:
    found = space("a=1,2", "b=1,2", "c=5", "++a=3,4", "b=9", "c=6,7")  # the experiment's first
    assert found.fixed == ("c=5", "b=9")
    assert [found.swept(found.point(number)) for number in range(4)] == [
        ("++a=3", "c=6"),
        ("++a=4", "c=6"),
        ("++a=3", "c=7"),
        ("++a=4", "c=7"),
    ]


def test_a_point_for_every_job_and_a_job_for_every_point() -> None:
    found = space("a=1,2,3", "b=x,y", "c=range(2)")
    jobs = [found.swept(found.point(number)) for number in range(12)]
    assert found.size == 12
    assert sorted(jobs) == sorted(itertools.product(("a=1", "a=2", "a=3"), ("b=x", "b=y"), ("c=0", "c=1")))


def test_samples_show_every_choice_and_both_ends() -> None:
    assert space("s=0", "a=1,5,9", "b=interval(0,0.5)", "+c=range(2,100)").probes() == [
        ["s=0", "a=1", "b=0.0", "+c=2"],
        ["s=0", "a=5", "b=0.0", "+c=2"],
        ["s=0", "a=9", "b=0.0", "+c=2"],
        ["s=0", "a=1", "b=0.5", "+c=2"],
        ["s=0", "a=1", "b=0.0", "+c=99"],
    ]


@pytest.mark.parametrize(
    ("override", "parameter", "text"),
    [
        ("k=interval(0,1)", 0.123456, "k=0.1235"),
        ("k=tag(log, interval(1e-6,1))", 0.00012345678, "k=0.0001235"),
        ("k=interval(0,0.99996)", 0.99996, "k=0.99996"),  # 1 would be outside
        ("k=tag(int, interval(1,100000))", 12345, "k=12345"),
    ],
)
def test_sampled_numbers_are_short_and_stay_inside(override: str, parameter: float, text: str) -> None:
    assert space(override).swept({"k": parameter}) == (text,)


def test_an_interval_has_no_number_of_jobs() -> None:
    assert space("a=8,4", "b=x,y,z").size == 6
    assert space("a=8,4", "c=interval(0,1)").size is None


def test_a_grid_has_no_intervals() -> None:
    space("a=1,2").require_finite()
    with pytest.raises(ConfigError, match=r"^a: an interval is no grid; list its values.*\nc: an interval"):
        space("+a=interval(0,1)", "b=1,2", "c=interval(0,1)").require_finite()
