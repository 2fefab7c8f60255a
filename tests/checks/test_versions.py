"""Versions against floors and against those that are tested, and optional parts."""

from pathlib import Path

import pytest

from forge import paths
from forge.checks import Finding, versions

PROJECT = """
[project]
dependencies = ["mlx>=1.0", "numpy>=2", "wanted>=1.5"]
[project.optional-dependencies]
cpu = ["mlx-lm[cpu]"]
search = ["optuna>=5.0"]
two = ["here>=1", "gone>=1; python_version >= '3'"]
"""
MAIN = {"mlx": "1.2", "mlx-lm": "0.3", "mlflow": "3.1", "numpy": "2.1", "hydra-core": "1", "transformers": "5", "tokenizers": "0.2"}
INSTALLED = MAIN | {"wanted": "1.6", "optuna": "5.1", "here": "1.0", "other": "7"}


@pytest.fixture(autouse=True)
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """One whose pyproject.toml is PROJECT, where INSTALLED is installed."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").touch()
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setattr(paths, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(versions, "_version", INSTALLED.get)
    return tmp_path


def named(findings: object) -> dict[str, Finding]:
    return {one.name: one for one in findings}  # type: ignore[attr-defined]


def test_what_is_installed_as_it_should_be_is_fine(checkout: Path) -> None:
    (checkout / "constraints.txt").write_text("mlx==1.2\nother==7\n# a comment\n")
    found = named(versions.versions())
    assert {one.state for one in found.values()} == {"ok"}
    assert (found["mlx"].said, found["python"].state) == ("1.2", "ok")
    assert named(versions.drift())["constraints.txt"].said == "1 other packages are the tested ones"


def test_a_version_below_the_floor_is_a_problem(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    monkeypatch.setattr(versions, "_version", (INSTALLED | {"mlx": "0.9"}).get)
    found = named(versions.versions())["mlx"]
    assert (found.state, found.said) == ("problem", "0.9, but forge needs >=1.0")
    assert found.way_out == f"cd {checkout} && pip install -c constraints.txt mlx"


@pytest.mark.parametrize("version", [None, "1.4"])
def test_what_is_missing_or_too_old_among_the_others_is_a_problem(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setattr(versions, "_version", (INSTALLED | {"wanted": version}).get)
    assert named(versions.versions())["other packages"].said == "missing or too old: wanted"


def test_a_main_package_that_is_missing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_version", (INSTALLED | {"mlflow": None}).get)
    assert (named(versions.versions())["mlflow"].state, named(versions.versions())["mlflow"].said) == ("problem", "not installed")


def test_another_version_than_the_tested_is_noted(checkout: Path) -> None:
    (checkout / "constraints.txt").write_text("mlx==1.3\nother==8\nother==9 ; sys_platform == 'none'\nnot-here==1\n")
    assert (named(versions.versions())["mlx"].state, named(versions.versions())["mlx"].said) == ("note", "1.2, tested with 1.3")
    rest = named(versions.drift())["constraints.txt"]
    assert (rest.state, rest.said) == ("note", "1 of 1 other packages differ: other 7 (tested 8)")


def test_without_a_list_of_tested_versions_nothing_is_said_of_them() -> None:
    assert list(versions.drift()) == []


def test_an_extra_is_there_when_all_of_it_is() -> None:
    found = named(versions.extras())
    assert set(found) == {"search", "two"}  # a backend is no feature
    assert (found["search"].state, found["search"].said) == ("ok", "optuna 5.1: sweep=tpe, random and grid")
    assert (found["two"].state, found["two"].way_out) == ("off", "pip install 'forge-mlx[two]'")


def test_an_installed_forge_is_asked_for_its_own_needs(monkeypatch: pytest.MonkeyPatch, checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    needs = ["mlx>=2.0", 'optuna>=6 ; extra == "search"', "odd @@ line"]
    monkeypatch.setattr(versions.metadata, "requires", lambda name: needs)
    assert named(versions.versions())["mlx"].way_out == "pip install --upgrade mlx"
    assert named(versions.extras())["search"].state == "off"
