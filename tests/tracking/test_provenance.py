"""What a run records about where it came from, and that no secret is in it. CFG-3, CFG-5."""

import os
from pathlib import Path

import pytest

from forge.tracking import provenance

SECRET = "hf_0123456789abcdef"


@pytest.fixture(autouse=True)
def few_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own secrets must not decide what these tests see."""
    for name in list(os.environ):
        if name not in ("PATH", "HOME", "USER", "LOGNAME"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "MLFLOW_TRACKING_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "OPENAI_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "my_client_secret",
        "GIT_PASSWD",
    ],
)
def test_the_value_of_a_secret_becomes_its_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    text = f"url=https://user:{SECRET}@hub/x\nagain {SECRET}."
    assert provenance.redact(text) == f"url=https://user:<{name}>@hub/x\nagain <{name}>."


def test_other_text_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "abcde" is too short to be a secret, and would blot out words; TOKENIZERS_PARALLELISM only begins like one."""
    monkeypatch.setenv("HF_TOKEN", "abcde")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false,really")
    monkeypatch.setenv("EDITOR", "editor-of-mine")
    text = "abcde false,really editor-of-mine"
    assert provenance.redact(text) == text


def test_a_secret_of_six_letters_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "abcdef")
    assert provenance.redact("abcdef") == "<HF_TOKEN>"


def test_each_of_several_secrets_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "first-secret")
    monkeypatch.setenv("WANDB_API_KEY", "other-secret")
    assert provenance.redact("first-secret other-secret") == "<HF_TOKEN> <WANDB_API_KEY>"


def test_a_secret_that_begins_with_another_goes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "abcdef")
    monkeypatch.setenv("B_TOKEN", "abcdef-and-more")
    assert "-and-more" not in provenance.redact("abcdef-and-more")


def test_the_diff_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setattr(provenance, "_git", lambda *arguments: f"+token = '{SECRET}'" if arguments == ("diff", "HEAD") else None)
    assert provenance.dirty_diff() == "+token = '<HF_TOKEN>'"


@pytest.mark.parametrize(("status", "dirty"), [("", "false"), (" M conf/config.yaml", "true")])
def test_tags_tell_the_commit_and_whether_it_is_all(monkeypatch: pytest.MonkeyPatch, status: str, dirty: str) -> None:
    answers = {"rev-parse": "0a1b2c", "status": status}
    monkeypatch.setattr(provenance, "_git", lambda *arguments: answers[arguments[0]])
    tags = provenance.tags()
    assert tags["mlflow.source.git.commit"] == "0a1b2c"
    assert tags["forge.git_dirty"] == dirty


def test_without_git_no_commit_is_invented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tags = provenance.tags()
    assert not [key for key in tags if "git" in key]
    assert provenance.dirty_diff() == ""


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("numpy", "no-such-package"))
    import numpy

    found = provenance.versions()
    assert found["numpy"] == numpy.__version__
    assert "no-such-package" not in found


def test_tags_are_text() -> None:
    tags = provenance.tags()
    assert tags["forge.blas"]
    assert all(isinstance(value, str) for value in tags.values())


def test_the_commit_is_the_code_s_and_not_the_results_folder_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if (code := provenance._git("rev-parse", "HEAD")) is None:
        pytest.skip("needs a git checkout")
    monkeypatch.setenv("FORGE_HOME", str(tmp_path))
    assert provenance._git("rev-parse", "HEAD") == code
