"""Imports without a search for garbage: what stays is not looked through, and the collector works again afterwards."""

import gc
import subprocess
import sys
import weakref

import pytest

from forge.imports import lasting


class _Ring:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_what_is_made_inside_stays_and_what_is_made_afterwards_is_collected() -> None:
    with lasting():
        assert not gc.isenabled()
        inside = weakref.ref(_Ring())
    after = weakref.ref(_Ring())
    gc.collect()
    assert gc.isenabled() and inside() is not None and after() is None


def test_the_collector_works_again_after_an_import_that_failed() -> None:
    with pytest.raises(ImportError), lasting():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with lasting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("forge.sweep.parent", ("mlx", "mlx_lm", "transformers")), ("forge.assemble", ("mlflow", "matplotlib", "transformers"))],
)
def test_what_a_process_does_not_need_is_not_imported(module: str, heavy: tuple[str, ...]) -> None:
    """A sweep's parent, and the process that looks at data and base for it, start as quickly as that."""
    told = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"], capture_output=True, encoding="utf-8", check=True
    )
    assert not {*heavy} & {*told.stdout.split()}
