"""Aliases under a race: whoever comes first, the better one is champion at the end, and the newest of the rest challenger."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forge import audit
from forge.jobs import preflight
from forge.release import promote
from forge.release.promote import LOSS, VALID_DIGEST
from forge.spec import Data
from forge.tracking import registry, store
from forge.tracking.registry import Version

NOTHING: Data = None  # type: ignore[assignment]  (losses on the same tokens are not measured again)


def versions(name: str, losses: list[float], folder: Path) -> list[Version]:
    """Registered in this order, each of another folder."""
    client = store.connect(None)
    client.create_registered_model(name)
    found = []
    for loss in losses:
        tags = {LOSS: repr(loss), VALID_DIGEST: "the same"}
        found.append(Version(name, str(client.create_model_version(name, source=folder.as_uri(), tags=tags).version), tags))
    return found


@pytest.fixture
def decide(home: Path) -> Any:
    (config,) = preflight([]).configs  # type: ignore[union-attr]
    return lambda version, **settings: promote.decide(replace(config.release, **settings), config.tracking, NOTHING, version)


def aliases(name: str) -> dict[str, str]:
    return {alias: str(version) for alias, version in store.connect(None).get_registered_model(name).aliases.items()}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_of_several_at_once_the_better_is_champion(
    order: tuple[int, ...], decide: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"race-{order}"
    found = versions(name, [3.0, 1.0, 2.0], tmp_path)
    real = registry._bearer

    def slow(*given: Any) -> Any:
        bearer = real(*given)
        time.sleep(0.05)  # in which another one may move it
        return bearer

    monkeypatch.setattr(registry, "_bearer", slow)
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(decide, [found[number] for number in order]))
    assert aliases(name)["champion"] == "2"
    assert aliases(name).get("challenger") in (None, "1", "3")


def test_an_older_one_that_comes_late_is_no_challenger(decide: Any, tmp_path: Path) -> None:
    best, older, newer = versions("late", [1.0, 2.0, 3.0], tmp_path)
    assert decide(best).alias == "champion"
    assert decide(newer).alias == "challenger"
    late = decide(older)
    assert late.alias is None and late.reason.endswith("version 3 is newer and stays challenger")
    assert aliases("late") == {"champion": "1", "challenger": "3"}


def test_aliases_are_the_users_to_name_and_moves_are_noted(decide: Any, tmp_path: Path) -> None:
    first, second = versions("named", [1.0, 2.0], tmp_path)
    decide(first, alias="best", challenger="next")
    decide(second, alias="best", challenger="next")
    assert aliases("named") == {"best": "1", "next": "2"}
    moves = [line for line in audit.read() if str(line["on"]).startswith("models:/named@")]
    assert [(line["what"], line["on"]) for line in moves] == [("move alias", "models:/named@best"), ("move alias", "models:/named@next")]
    assert str(moves[1]["why"]).startswith("to version 2: version 1 stays best: validation loss 2.0000 is not below its 1.0000")
