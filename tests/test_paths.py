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


def test_a_path_that_a_user_wrote_may_lie_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.given("model.path", "~/a/../b c") == tmp_path / "a" / ".." / "b c"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("~nobody-of-that-name/x", "there is no such user; write the path in full"),
        ("n" * 256, r"can't be looked for \(File name too long\)"),
        ("a\x00b", r"a\?b: a path holds no control characters"),
        ("a\ud800", r"can't be looked for \(it holds half a character\)"),
        ("a\nb", r"a\?b: a path holds no control characters"),
    ],
)
def test_a_path_that_there_can_not_be_is_one_line(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.path=.*{said}") as caught:
        paths.given("model.path", path)
    assert str(caught.value).isprintable()


OUTSIDE = {
    "a step up": "../x",
    "a step up in between": "a/../../x",
    "a step up at the end": "a/..",
    "only steps": "..",
    "itself": ".",
    "nothing": "",
    "absolute": "/etc/passwd",
    "somebody's home": "~root/x",
    "Windows": "..\\x",
    "a drive": "C:/x",
    "a share": "\\\\host\\x",
    "two slashes": "a//b",
    "a NUL": "a\x00b",
    "a line": "a\nb",
    "half a character": "a\ud800",
    "too long": "n" * 256,
    "too long in bytes": "é" * 128,
}


@pytest.mark.parametrize("what", OUTSIDE)
def test_a_name_that_leads_elsewhere_is_one_line_that_says_why(tmp_path: Path, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        paths.within(tmp_path, OUTSIDE[what])
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300 + len(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x", "a/b/c", "..x", "x..y", ".hidden", "forge quickstart", "schön", "12\u202fam", "n" * 255])
def test_a_name_that_stays_inside_is_a_path(tmp_path: Path, name: str) -> None:
    assert paths.within(tmp_path, name) == tmp_path / name


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A root with a link to a neighbour, and one to a folder of its own."""
    for folder in ("root/inside", "neighbour"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text("kept")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "neighbour")
    (tmp_path / "root" / "in").symlink_to("inside")
    return tmp_path / "root"


@pytest.mark.parametrize("name", ["out", "out/file", "out/new"])
def test_a_link_that_leads_out_is_refused(linked: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="is a link that leads out of"):
        paths.within(linked, name)


def test_a_link_that_stays_inside_and_a_root_that_is_one_are_fine(linked: Path) -> None:
    assert paths.within(linked, "in/file").read_text() == "kept"
    (linked.parent / "other").symlink_to(linked)
    assert paths.within(linked.parent / "other", "inside/file").read_text() == "kept"


def test_links_in_a_ring_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ConfigError):
        paths.within(tmp_path, "a/x")


def test_a_run_s_id_is_no_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    with pytest.raises(ConfigError):
        paths.checkpoints("../../elsewhere")


def test_removing_takes_folders_files_and_links_and_never_what_links_point_to(linked: Path) -> None:
    (linked / "deep" / "er").mkdir(parents=True)
    (linked / "deep" / "er" / "away").symlink_to(linked.parent / "neighbour")
    assert paths.remove(linked, linked / "deep")
    assert paths.remove(linked, linked / "out")
    assert paths.remove(linked, linked / "inside" / "file")
    assert not paths.remove(linked, linked / "inside" / "file")
    assert sorted(path.name for path in linked.iterdir()) == ["in", "inside"]
    assert (linked.parent / "neighbour" / "file").read_text() == "kept"


@pytest.mark.parametrize("path", ["out/file", "../neighbour/file", "inside/../../neighbour/file", "..", ".", "../root"])
def test_nothing_outside_is_removed(linked: Path, path: str) -> None:
    with pytest.raises(ConfigError):
        paths.remove(linked, linked / path)
    assert (linked.parent / "neighbour" / "file").read_text() == "kept" and (linked / "inside" / "file").exists()


def test_another_root_s_path_is_not_removed(linked: Path) -> None:
    with pytest.raises(ConfigError, match="lies not below"):
        paths.remove(linked, linked.parent / "neighbour")
    assert (linked.parent / "neighbour" / "file").exists()


def test_a_scratch_folder_in_the_place_of_a_link_leaves_what_that_points_to(linked: Path) -> None:
    with paths.scratch(linked / "out") as folder:
        (folder / "new").touch()
    assert not (linked / "out").is_symlink() and not (linked / "out").exists()
    assert [path.name for path in (linked.parent / "neighbour").iterdir()] == ["file"]
