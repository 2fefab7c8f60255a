"""Which child of a sweep is the best, and why, in words.

The lowest validation loss wins; within the noise of it the earlier job does, so that chance decides nothing twice (forge.training.choice).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from forge.training.choice import Rows, first_within_noise


@dataclass(frozen=True)
class Finalist:
    """A finished child. `digest`: of the tokens that it was measured on; `loss` in nats a target, over `rows` where those are known."""

    number: int
    name: str
    loss: float
    digest: str
    rows: Rows = ()


@dataclass(frozen=True)
class Verdict:
    """`number` None: there is no best. `why` is a sentence either way."""

    number: int | None
    why: str


def judge(finalists: Sequence[Finalist]) -> Verdict:
    """Among all of these, at least one."""
    if len({one.digest for one in finalists}) > 1:
        return Verdict(None, "the children were measured on different validation tokens, so none is the best")
    one, lowest, allowed = first_within_noise(sorted(finalists, key=lambda one: one.number))
    why = f"the lowest of {len(finalists)} that finished"
    if one is not lowest:
        why = f"within the noise ({allowed:.2g}) of the lowest, {lowest.loss:.4f} of {lowest.name}, and the earlier job"
    return Verdict(one.number, f"{one.name}: {one.loss:.4f} nats, {why}")
