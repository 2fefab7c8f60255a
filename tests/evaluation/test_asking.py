"""Questions asked in a run: their time is counted, and memory that runs out is told with fewer of them."""

from collections.abc import Iterator

import mlx.core as mx
import pytest

from forge.errors import TrainingError
from forge.evaluation import asking
from forge.evaluation.asking import Asking
from forge.settings import EvaluationSpec, HarnessSpec
from forge.training.memory import UNBOUND, Setup, limited, metrics

SPEC = EvaluationSpec(max_tokens=100, answers=20, samples=2, max_new_tokens=28)
SETUP = Setup(micro_batch=8, accumulate=1, sequence_length=512)
MIB = 2**20


@pytest.fixture(autouse=True)
def nothing_used_before() -> Iterator[None]:
    mx.clear_cache()
    mx.reset_peak_memory()
    yield
    mx.reset_peak_memory()


def use(mib: int) -> None:
    mx.eval(mx.ones((mib * MIB // 4,)))


def test_seconds_add_up_also_where_asking_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 1 to 3, from 10 to 15."""
    clock = iter([1.0, 3.0, 10.0, 15.0])
    monkeypatch.setattr(asking.time, "perf_counter", lambda: next(clock))
    questions = Asking(UNBOUND, SPEC, 1, 100)
    with questions.at(0):
        pass
    with pytest.raises(ZeroDivisionError), questions.at(5):
        raise ZeroDivisionError
    assert questions.seconds == 7.0


def test_a_peak_that_asking_makes_is_known_and_one_from_before_is_not_asking_s() -> None:
    questions = Asking(UNBOUND, SPEC, 1, 100)
    use(40)
    with questions.at(0):
        use(10)
    assert questions.peaks == set()
    with questions.at(5):
        use(60)
    assert questions.peaks == {metrics()["memory/peak_gib"]}


@pytest.mark.parametrize(
    ("spec", "sources", "longest", "told"),
    [
        # 20 at once, of 5 MB each beside 10 fixed: (0.95 · 60 - 10) / 5 = 9.4
        (SPEC, 1, 100, "fewer fit: evaluation.answers=9 evaluation.samples=2; "),
        # 40 questions, 32 at once, of 3.125 MB each: 15.04, 7 of each source
        (SPEC, 2, 100, "fewer fit: evaluation.answers=7 evaluation.samples=2; "),
        # 16,384 / 2,028: 8 at once, of 12.5 MB each: 3.76
        (SPEC, 1, 2000, "fewer fit: evaluation.answers=3 evaluation.samples=2; "),
        # one at once, of 100 MB
        (SPEC, 1, 20000, "one at a time is too much as well: evaluation.answers=0 evaluation.samples=0; "),
    ],
)
def test_so_many_fit(spec: EvaluationSpec, sources: int, longest: int, told: str) -> None:
    mb = 10**6
    assert Asking(UNBOUND, spec, sources, longest).way_out(110 * mb, 60 * mb, 10 * mb).startswith(told)


def test_what_else_is_asked_is_to_be_left_out_too() -> None:
    """Of 40 instructions 32 are answered at once."""
    spec = EvaluationSpec(max_tokens=100, answers=4, retention=True, harness=HarnessSpec(tasks=["a"]))
    told = Asking(UNBOUND, spec, 1, 100).way_out(3200, 1600, 0)
    assert told.startswith("fewer fit: evaluation.answers=4 evaluation.samples=0 evaluation.retention=false evaluation.harness.tasks=[]; ")


def test_more_than_the_limit_is_told_and_what_was_used_before_is_not_blamed_on_questions() -> None:
    with limited("0.05 GB", SETUP) as bound:
        questions = Asking(bound, SPEC, 1, 100)
        with questions.at(3):
            use(40)  # 0.042 GB
        with (
            pytest.raises(
                TrainingError, match=r"step 4, answering questions: memory peaked at 6\d\.\d MB, above trainer\.memory_limit=0\.05 GB; few"
            ),
            questions.at(4),
        ):
            use(60)
        with questions.at(5):
            use(10)
        with pytest.raises(TrainingError, match=r"step 6: memory peaked at .*trainer\.micro_batch"):
            bound.check(6)


def test_a_failed_allocation_is_told_with_what_the_machine_has() -> None:
    said = r"step 5, answering questions: out of memory at .* \(\[metal::malloc\] .*\); .*evaluation\.answers="
    with pytest.raises(TrainingError, match=said), limited(None, SETUP) as bound, Asking(bound, SPEC, 1, 100).at(5):
        raise RuntimeError("[metal::malloc] Resource limit (499000) exceeded.")
