"""The tags by which forge knows its runs again."""

import platform

from forge import paths

IDENTITY, ROOT, PARENT = "forge.identity", "forge.root", "mlflow.parentRunId"


def here() -> str:
    """Where this process keeps checkpoints: what a run has to have been started from to be gone on with."""
    return f"{platform.node()}:{paths.root()}"
