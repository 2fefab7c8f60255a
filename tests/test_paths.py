"""The root: FORGE_HOME, else the checkout, else the current folder."""

from pathlib import Path

import pytest

from forge import paths
from forge.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """forge as a wheel puts it: no checkout around the package. The folder that holds the package."""
    package = tmp_path / "site-packages" / "forge"
    monkeypatch.setattr(paths, "_PACKAGE", package)
    monkeypatch.setattr(paths, "_CHECKOUT", package.parent)
    return package


def test_forge_home_is_the_root_even_in_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    assert paths.root() == tmp_path.resolve()
    assert paths.runs() == tmp_path.resolve() / "mlruns"


def test_forge_home_may_start_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FORGE_HOME", "~/work")
    assert paths.root() == tmp_path.resolve() / "work"


def test_a_relative_forge_home_is_below_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_HOME", "work")
    assert paths.root() == tmp_path.resolve() / "work"


@pytest.mark.parametrize("home", [None, ""])
def test_the_checkout_is_the_root_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None) -> None:
    monkeypatch.delenv("FORGE_HOME", raising=False)
    if home is not None:
        monkeypatch.setenv("FORGE_HOME", home)
    monkeypatch.chdir(tmp_path)
    assert paths.root() == ROOT
    assert paths.conf() == ROOT / "conf"


def test_an_installed_forge_works_in_the_current_folder(installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FORGE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert not paths.in_checkout()
    assert paths.root() == tmp_path.resolve()
    assert paths.conf() == installed / "conf"


def test_code_lies_apart_from_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert paths.code() == ROOT


def test_the_code_around_an_installed_forge_is_the_current_folder(installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert paths.code() == tmp_path.resolve()


def test_a_neighbour_s_pyproject_makes_no_checkout(installed: Path) -> None:
    installed.parent.mkdir()
    (installed.parent / "pyproject.toml").touch()
    assert not paths.in_checkout()


def test_a_run_s_checkpoints_have_a_folder_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    root = tmp_path.resolve()
    assert paths.checkpoints("abc") == root / "mlruns" / "checkpoints" / "abc"
    assert paths.cache() == root / "mlruns" / "cache"
    assert paths.locks() == root / "mlruns" / "cache" / "locks"


def test_asking_for_a_path_makes_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    paths.root(), paths.runs(), paths.checkpoints("abc"), paths.cache(), paths.locks()
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_can_not_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(ConfigError, match=r"file/below/mlruns: can't be written \(.+\); mend that, or set FORGE_HOME to another place"):
        paths.require_writable()
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    paths.require_writable()
    assert list((tmp_path / "mlruns").iterdir()) == []
