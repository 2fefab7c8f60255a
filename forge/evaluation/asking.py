"""Around the answering of questions in a run: time and memory that it takes, and what to do where memory doesn't suffice. Costs nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import mlx.core as mx

from forge.evaluation.answers import at_once
from forge.settings import EvaluationSpec
from forge.training.memory import ROOM, Bound


@dataclass
class Asking:
    """`sources`: how many may hold questions; `longest`: tokens of a question at most. `seconds`: what asking has taken so far;
    `peaks`: of MLX's memory, in GiB, each that asking raised above all before it."""

    bound: Bound
    spec: EvaluationSpec
    sources: int
    longest: int
    seconds: float = 0.0
    peaks: set[float] = field(default_factory=set)

    @contextmanager
    def at(self, step: int) -> Iterator[None]:
        """Raises TrainingError where memory runs out within, or what is done within takes more than the run may use."""
        started, before = time.perf_counter(), _peak_gib()
        try:
            with self.bound.told_beside(step, "answering questions", self.way_out):
                yield
        finally:
            self.peaks |= {_peak_gib()} - {before}
            self.seconds += time.perf_counter() - started

    def way_out(self, used: int, limit: int, fixed: int) -> str:
        """What to ask instead, all sizes in bytes. What comes on top of `fixed` is taken to grow with the answers that are made at once.

        20 at once that came to 105 MB, of which none is fixed, take 5.25 each: 9 of them stay below 95 % of 50 MB.
        """
        spec = self.spec
        together = at_once(self.longest + spec.max_new_tokens)
        together = together if spec.retention else min(together, max(spec.answers, spec.samples) * self.sources)
        each = max(1.0, (max(used, limit) - fixed) / max(1, together))
        fewer = max(0, int((ROOM * limit - fixed) / each)) // self.sources
        ways = [f"evaluation.answers={min(fewer, spec.answers)} evaluation.samples={min(fewer, spec.samples)}"]
        ways += ["evaluation.retention=false"] if spec.retention else []
        ways += ["evaluation.harness.tasks=[]"] if spec.harness.tasks else []
        shorter = f"shorter answers take less too: evaluation.max_new_tokens, now {spec.max_new_tokens}"
        return f"{'fewer fit' if fewer else 'one at a time is too much as well'}: {' '.join(ways)}; {shorter}; resume=auto goes on"


def _peak_gib() -> float:
    return float(mx.get_peak_memory() / 2**30)
