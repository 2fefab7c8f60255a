"""What is written down of a run."""

from forge import evidence


def test_the_command_that_makes_a_run_again_leaves_out_what_was_this_runs_alone() -> None:
    """With its journal, a search's job made again would be pruned where the first one was, and write into that one's trial."""
    pruning = "callbacks.pruning={_target_:forge.sweep.pruning.Pruning,journal:'/a/study.journal',trial:3}"
    given = ["+experiment=quickstart", "optimizer.lr=1e-4", "resume=auto", "tracking.parent_run=a", "hydra.run.dir='b'", pruning]
    assert evidence.again(given) == ["+experiment=quickstart", "optimizer.lr=1e-4"]
