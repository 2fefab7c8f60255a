"""Imports of the large libraries without a search for garbage.

MLflow, transformers and MLX bring about a million objects that stay until the process ends. Python's collector would go through all of
them time and again while they come in, at each full collection of a training, and at exit: about a second of a run's processor time.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside stays: the collector never looks at it again. Only for imports; what else is garbage by then stays too."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
