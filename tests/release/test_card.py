"""The card: read back by the hub's own library, numbers as measured, and no licence that the base's files don't name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from forge.models import Loaded
from forge.models.adapters import full
from forge.release import origin
from forge.release.card import _summary
from forge.release.origin import Origin
from forge.spec import Lineage
from forge.tracking import registry
from forge.training.evaluate import evaluate
from tests.release.conftest import Publish, Trained

MIT = "MIT License\n\nCopyright (c) 2024 Somebody\n\nPermission is hereby granted, free of charge, to any person obtaining"
APACHE = "\n                                 Apache License\n                           Version 2.0, January 2004\n"


def nowhere(uri: str) -> tuple[Path, str]:
    raise AssertionError(uri)


def based(folder: Path, kind: str = "local", revision: str = "abc") -> Loaded:
    return Loaded(None, None, {"model_type": "qwen3"}, Lineage(kind, str(folder), revision))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("files", "license", "said_by"),
    [
        ({"README.md": "---\nlicense: gemma\n---\n# A model", "LICENSE": MIT}, "gemma", "README.md"),
        ({"README.md": "# no front matter", "LICENSE": APACHE}, "apache-2.0", "LICENSE"),
        ({"LICENSE.txt": MIT}, "mit", "LICENSE.txt"),
        ({"LICENSE": "Permission is hereby granted, free of charge, to any person obtaining"}, "mit", "LICENSE"),
        ({"LICENSE": "You may use this on Tuesdays."}, "other", "LICENSE"),
        ({"README.md": "---\nlicense: [unclosed\n---"}, "unknown", ""),
        ({}, "unknown", ""),
    ],
)
def test_a_licence_is_what_the_bases_files_say(files: dict[str, str], license: str, said_by: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = origin.find(based(tmp_path), nowhere)
    assert (found.license, found.said_by, found.base) == (license, said_by, tmp_path.name)
    assert (found.file is not None) == any(name.startswith("LICENSE") for name in files)


def test_config_json_may_say_it_last(tmp_path: Path) -> None:
    loaded = replace(based(tmp_path), config={"model_type": "qwen3", "license": "cc-by-4.0"})
    assert origin.find(loaded, nowhere).license == "cc-by-4.0"


def test_a_registered_base_hands_its_licence_on(tmp_path: Path) -> None:
    """Of a version that was packed on loading, too."""
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: tuesday\nlicense_link: LICENSE\n---\n")
    (tmp_path / "LICENSE").write_text("On Tuesdays.")
    asked: list[str] = []

    def fetch(uri: str) -> tuple[Path, str]:
        asked.append(uri)
        return tmp_path, uri

    loaded = Loaded(None, None, {}, Lineage("registry", "models:/a@champion", "models:/a/3 quantised to 4 bits in groups of 64"))  # type: ignore[arg-type]
    found = origin.find(loaded, fetch)
    assert asked == ["models:/a/3"]
    assert (found.license, found.fields, found.base) == (
        "other",
        {"license_name": "tuesday", "license_link": "LICENSE"},
        "models:/a@champion",
    )


def test_a_hub_base_that_is_not_in_the_cache_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin.hubcache, "cached", lambda id, revision: None)
    found = origin.find(based(Path("owner/name"), "hub"), nowhere)
    assert (found.base, found.license) == ("owner/name", "unknown")


@pytest.fixture
def card_of(publish: Publish, trained: Trained, tmp_path: Path) -> Callable[..., tuple[Path, float]]:
    """The released folder of a model whose base lies in a folder of its own, and its validation loss."""

    def make(**settings: object) -> tuple[Path, float]:
        folder = tmp_path / "tuesday-1b"
        folder.mkdir()
        (folder / "LICENSE").write_text("You may use this on Tuesdays.")
        loaded = replace(trained.make(), lineage=Lineage("local", str(folder), "0123456789abcdef"))
        config = replace(publish.config, tracking=replace(publish.config.tracking, dashboard=True))
        loss = evaluate(loaded.model, trained.data).metrics["val/loss"]
        released = Publish(config, publish.data, publish.folder)(loaded, full, 5.0, **settings)  # type: ignore[arg-type]
        last = released.others[-1] if released.others else released
        return registry.fetch(None, last.version.uri)[0], loss

    return make


def test_the_card_lies_with_the_model_and_the_hub_reads_it(card_of: Callable[..., tuple[Path, float]], trained: Trained) -> None:
    folder, loss = card_of()
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["license"], data["license_name"], data["license_link"]) == (
        "tuesday-1b",
        "other",
        "LICENSE",
        "LICENSE",
    )
    assert (data["library_name"], data["pipeline_tag"], data["metrics"]) == ("mlx", "text-generation", ["loss", "perplexity"])
    measured = {each["type"]: each["value"] for each in data["model-index"][0]["results"][0]["metrics"]}
    assert measured["loss"] == pytest.approx(loss, abs=1e-4)
    assert (folder / "LICENSE").read_text() == "You may use this on Tuesdays."
    assert (folder / "dashboard.png").stat().st_size > 10_000 and "(dashboard.png)" in card.text
    counts = trained.data.ledger.counts
    for expected in (
        "| all together | 5.0000 | " + f"{loss:.4f} |",
        f"| rows_train | {counts['data/talk/rows_train']:,.0f} | {counts['data/text/rows_train']:,.0f} |",
        trained.data.ledger.valid_digest[:16],
        "mlflow models serve -m models:/",
        "python -m forge.serve model=models:/",
        "mlx_lm.generate",
        "- end of turn: passed: 4 of 4 answers ended",
        "optimizer.lr: ",
    ):
        assert expected in card.text, expected
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"


def test_a_registered_base_is_named_once_and_no_file_is_quoted_for_a_licence_that_is_not_known() -> None:
    def summary(base: Origin, revision: str) -> str:
        loaded = Loaded(None, None, {"model_type": "qwen3"}, Lineage("registry", "models:/a/3", revision))  # type: ignore[arg-type]
        return _summary(SimpleNamespace(parts=SimpleNamespace(loaded=loaded), origin=base, recipe=None))  # type: ignore[arg-type]

    begins = "A language model of the qwen3 architecture, adapted from `models:/a/3`"
    assert summary(Origin("models:/a/3", "unknown", "README.md"), "models:/a/3") == f"{begins}. Licence of the base: unknown."
    packed = summary(Origin("models:/a/3", "mit", "README.md"), "models:/a/3 in 4 bits")
    assert packed == f"{begins} (models:/a/3 in 4 bits). Licence of the base: mit (says its README.md)."


def test_a_quantised_models_card_says_so(card_of: Callable[..., tuple[Path, float]]) -> None:
    folder, _ = card_of(quantise=["8bit-g32"])
    card = ModelCard.load(folder / "README.md")
    assert {"quantised", "8bit-g32"} <= set(card.data.to_dict()["tags"])
    assert "quantised by the recipe `8bit-g32` to " in card.text and "| 8bit-g32 | " in card.text


def test_a_model_from_nothing_has_no_base(publish: Publish, trained: Trained) -> None:
    released = publish(trained.make())
    card = ModelCard.load(registry.fetch(None, released.version.uri)[0] / "README.md")
    assert "base_model" not in card.data.to_dict() and card.data.to_dict()["license"] == "unknown"
    assert "made from nothing" in card.text and "dashboard.png" not in card.text
    assert "Not judged: no regression, since the base's loss on these validation tokens is not known." in card.text
