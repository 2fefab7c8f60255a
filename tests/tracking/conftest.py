"""A root of its own with one tracking store for all tests here: making a store takes seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.spec import TrackingSpec


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def home(shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORGE_HOME", str(shared_home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return shared_home


@pytest.fixture
def make_spec(home: Path, request: pytest.FixtureRequest) -> Callable[..., TrackingSpec]:
    """make_spec(**changes): tracking settings with an experiment of the test's own."""

    def make(**changes: Any) -> TrackingSpec:
        settings: dict[str, Any] = {
            "uri": None,
            "experiment": request.node.name,
            "run_name": None,
            "parent_run": None,
            "dashboard": True,
            "tags": {},
        }
        return TrackingSpec(**(settings | changes))

    return make
