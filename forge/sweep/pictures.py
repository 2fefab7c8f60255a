"""The pictures of a sweep, as images of its parent run. Takes a second or two, and some milliseconds a child to read its curve."""

from collections.abc import Sequence

from mlflow import MlflowClient

from forge.reports import sweep, sweep_children
from forge.sweep.children import Child
from forge.sweep.search import Search
from forge.sweep.study import Optimised
from forge.sweep.winner import Verdict
from forge.tracking import reader
from forge.tracking.run import Run

_VALID = "val/loss"


def draw(client: MlflowClient, parent: Run, children: Sequence[Child], verdict: Verdict | None, search: Search) -> None:
    importances = search.importances() if isinstance(search, Optimised) else None
    for file, figure in sweep.pictures([_plain(client, child, verdict) for child in children], importances).items():
        parent.figure(figure, file)


def _plain(client: MlflowClient, child: Child, verdict: Verdict | None) -> sweep_children.Child:
    step = child.run.metrics.get("best/step")
    return sweep_children.Child(
        name=child.proposal.name,
        swept=child.proposal.values,
        best_loss=child.loss,
        best_step=None if step is None else int(step),
        status=child.ending,
        curve=[(step, metrics[_VALID]) for step, metrics in reader.history(client, child.run.id, [_VALID])],
        seconds=child.seconds,
        won=verdict is not None and child.proposal.number == verdict.number,
    )
