"""Room, rights and sizes; and what the environment chooses, without its secrets."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from forge.checks import Finding, disk, environment, guarded
from forge.errors import ConfigError


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("FORGE_HOME", str(folder))
    return folder


@pytest.mark.parametrize(("free", "state"), [(100.0, "ok"), (5.0, "note"), (0.5, "problem")])
def test_little_room_is_noted_and_none_a_problem(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(total=200e9, free=free * 1e9))
    (found,) = [one for one in disk.room() if one.name.startswith("disk of root")]
    assert found.state == state and bool(found.way_out) == (state != "ok")


def test_places_on_one_disk_are_told_once_and_no_folder_is_made(monkeypatch: pytest.MonkeyPatch, home: Path, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = list(disk.room())
    assert [one.name for one in told] == ["disk of root", "root writable"]
    assert told[0].said.endswith(", with the hub cache and the temporary files")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_can_not_be_written_is_a_problem(tmp_path: Path) -> None:
    assert disk.writable("root", Path("/proc/nowhere")).state == "problem"
    assert disk.writable("root", tmp_path / "not" / "yet").said.endswith("(not there yet)")


def test_what_is_kept_is_summed_without_following_links(home: Path) -> None:
    (home / "mlruns" / "checkpoints" / "run" / "step").mkdir(parents=True)
    (home / "mlruns" / "checkpoints" / "run" / "step" / "weights").write_bytes(bytes(3_000_000))
    (home / "big").write_bytes(bytes(9_000_000))
    (home / "mlruns" / "checkpoints" / "run" / "link").symlink_to(home)
    (found,) = disk.sizes()
    assert "cache 0.0 MB, checkpoints 3.0 MB, artifacts 0.0 MB (of 1 run, " in found.said


def test_many_files_are_not_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlruns" / "cache").mkdir(parents=True)
    monkeypatch.setattr(disk, "_LOOK_S", -1.0)
    assert "cache more than 0.0 MB" in next(iter(disk.sizes())).said


def told() -> dict[str, Finding]:
    return {one.name: one for one in environment.environment()}


def test_secrets_are_told_by_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_s3cr3t")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t@host:5000")
    assert "s3cr3t" not in str(told()) and told()["HF_TOKEN"].said == "set"
    assert told()["MLFLOW_TRACKING_URI"].said == "http://…@host:5000"


@pytest.mark.parametrize(("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_offline_is_told_as_the_hub_s_client_reads_it(monkeypatch: pytest.MonkeyPatch, value: str, offline: bool) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert ("local cache alone" in told()["HF_HUB_OFFLINE"].said) == offline


def test_a_home_that_is_a_file_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FORGE_HOME", str(tmp_path / "file"))
    assert told()["FORGE_HOME"].state == "problem"


def test_a_check_that_fails_itself_is_a_finding() -> None:
    def raises(error: Exception) -> list[Finding]:
        raise error

    (bug,) = guarded("device", lambda: raises(KeyError("a\nb")))
    (mistake,) = guarded("disk", lambda: raises(ConfigError("FORGE_HOME=x: that is no folder; take another")))
    assert (bug.state, bug.said) == ("problem", "can't be looked at: KeyError: 'a\\nb'")
    assert (mistake.said, mistake.way_out) == ("FORGE_HOME=x: that is no folder", "take another")
