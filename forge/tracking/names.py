"""The tags by which forge knows its runs again."""

import platform
from collections.abc import Mapping

from forge import paths

IDENTITY, ROOT, PARENT = "forge.identity", "forge.root", "mlflow.parentRunId"
WENT_ON = "forge.went_on_after"  # the last step that was logged before a stop; of a run that never stopped there is none
SWEEP, CHAIN, TOTAL = "forge.sweep", "forge.chain", "forge.children"  # of a parent run: the keys that are swept, the stages; how many runs


def here() -> str:
    """Where this process keeps checkpoints: what a run has to have been started from to be gone on with."""
    return f"{platform.node()}:{paths.root()}"


def kind(tags: Mapping[str, str]) -> str | None:
    """What a run is the parent of, in a word; None where it trains itself."""
    return "sweep" if SWEEP in tags else "chain" if CHAIN in tags else None


def way_on(tags: Mapping[str, str]) -> str:
    """What goes on with a run that ended early. Children are their parent's to go on with."""
    return "the same command" if kind(tags) or PARENT in tags else "resume=auto"
