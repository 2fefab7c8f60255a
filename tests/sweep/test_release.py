"""A sweep's winner is released from the base that it was trained on."""

from typing import Any

import pytest

from forge import assemble, jobs
from forge.errors import ModelError
from forge.sweep import release
from forge.sweep.children import Child
from forge.sweep.search import Proposal
from forge.tracking.reader import Seen


def test_the_winner_s_base_is_the_version_that_it_had_where_an_alias_moved_since(monkeypatch: pytest.MonkeyPatch) -> None:
    config = jobs.single(["model=models:/a@champion"], "")
    assert config
    run = Seen("id", "name", "1", "FINISHED", 0, 1, {"forge.base": "registry models:/a@champion models:/a/3"}, {}, {"best/step": 1.0})

    def stopped(config: Any, fetch: Any) -> None:
        raise ModelError(config.model.keywords["uri"])

    monkeypatch.setattr(assemble, "assemble", stopped)
    with pytest.raises(ModelError, match=r"^models:/a/3$"):
        release._release(Child(Proposal(0, (), ()), config, run))
