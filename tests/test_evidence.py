"""What is written down of a run."""

from pathlib import Path

from forge import evidence
from forge.evaluation.answers import Answer
from forge.evaluation.samples import Sample
from forge.settings import TrackingSpec
from forge.tracking.run import run as open_run


def test_the_command_that_makes_a_run_again_leaves_out_what_was_this_runs_alone() -> None:
    """With its journal, a search's job made again would be pruned where the first one was, and write into that one's trial."""
    pruning = "callbacks.pruning={_target_:forge.sweep.pruning.Pruning,journal:'/a/study.journal',trial:3}"
    given = ["+experiment=quickstart", "optimizer.lr=1e-4", "resume=auto", "tracking.parent_run=a", "hydra.run.dir='b'", pruning]
    assert evidence.again(given) == ["+experiment=quickstart", "optimizer.lr=1e-4"]


def test_what_earlier_lives_wrote_is_read_back_up_to_where_this_one_went_on(home: Path) -> None:
    """Evaluated at 0, 5, 10 and 15; gone on with from 5, and evaluated at 10 again, otherwise."""
    spec = TrackingSpec(uri=None, experiment="sampled", run_name="two lives", parent_run=None, dashboard=False, tags={})

    def sample(step: int, text: str) -> Sample:
        return step, Answer("talk", "who?", "me", text, (1,), ended=True)

    with open_run(spec, "identity") as run:
        run.log({"train/loss": 1.0}, 15)
        assert evidence.sampled_before(run, [], 15) == []
        for step in (0, 5, 10, 15):
            evidence.sampled(run, [sample(step, "first")])
    with open_run(spec, "identity", run.id) as run:
        evidence.sampled(run, [sample(10, "second")])
        found = evidence.sampled_before(run, [sample(10, "second")], 20)
        assert [(row["step"], row["answer"]) for row in found] == [(0, "first"), (5, "first")]
        assert [row["step"] for row in evidence.sampled_before(run, [], 10)] == [0, 5, 10]
