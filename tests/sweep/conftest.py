"""A place for sweeps, as a person runs them."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.place import Place, Told, opened


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with opened(tmp_path_factory.mktemp("user")) as found:
        yield found


@pytest.fixture(scope="module")
def tales(request: pytest.FixtureRequest, place: Place) -> Iterator[Told]:
    told = Told(request, place)
    yield told
    told.close()


@pytest.fixture
def told(request: pytest.FixtureRequest, tales: Told) -> Any:
    return tales.by(request.node)
