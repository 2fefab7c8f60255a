"""python -m forge.reproduce: a run that comes out the same, and each thing that can have drifted since, planted. REG-7."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forge import blas, jobs, pins, reproduce
from forge.errors import DataError
from forge.models import device
from forge.pins import Pin, shown
from forge.rerun import TAG, Difference, likeness
from forge.settings import TrackingSpec
from forge.tracking import provenance, reader, store
from forge.tracking.run import run as open_run
from tests.place import ROOT, TINY, Place, clean, looks_at

Reproduce = Callable[..., tuple[int, str, str]]
ALLOWED = "allowed_targets=[planted.]"
trains = pytest.mark.filterwarnings(
    "ignore:For backward compatibility, 'str' dtypes:DeprecationWarning"
)  # of MLflow's tables, in this process


@pytest.fixture(scope="module")
def place(place: Place, make_tiny_model: Any) -> Place:
    """The user's folder, with a base model in it before any run is."""
    from mlx_lm.utils import save_config, save_model

    loaded, folder = make_tiny_model(), place.folder / "base"
    folder.mkdir()
    save_model(folder, loaded.model)
    save_config(dict(loaded.config), folder / "config.json")
    loaded.tokenizer.save_pretrained(folder)
    return place


def first_run(place: Place) -> str:
    """From the local base, with what only looks at it left out. Returns its id."""
    own = ("model=local", f"model.path={place.folder / 'base'}", *(f"~model.{key}" for key in TINY), "tracking.run_name=first")
    life = place.life("first", *own, "evaluation.answers=0", "evaluation.samples=0")
    assert life.code == 0, life.output
    return str(life.runs[0].info.run_id)


def typed_again(place: Place) -> tuple[int, str]:
    """The command as it is typed, in a folder that has nothing to do with the run."""
    settings = clean() | {"FORGE_HOME": str(place.folder / "home"), "PYTHONPATH": f"{place.folder}:{ROOT}"}
    command = [sys.executable, "-m", "forge.reproduce", "first", ALLOWED]
    done = subprocess.run(command, cwd=place.folder / "elsewhere", env=settings, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def again(place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Reproduce:
    """again(*words) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setenv("FORGE_HOME", str(place.folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(str(place.folder))
    monkeypatch.setattr(reproduce, "_WIDE", 1000)  # the test's folders have long names, and a cell that is folded is in pieces

    def typed(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = reproduce.main(list(words))
        return code, *capsys.readouterr()

    return typed


def drifted(out: str) -> dict[str, list[str]]:
    """The rows of the table that say so, by pin: then and now."""
    rows = [re.split(r" {2,}", line.strip()) for line in out.splitlines() if line.rstrip().endswith("  drifted")]
    code = ("code commit", "uncommitted changes")  # it may be worked on meanwhile
    return {name: values for name, *values, _ in rows if name not in code}


@pytest.mark.slow
@looks_at(typed_again, after=first_run)
def test_a_run_comes_out_the_same(place: Place, tales: Any, told: tuple[int, str]) -> None:
    code, out = told
    assert code == 0, out
    first = tales.start(first_run).result()
    (second,) = [run for run in place.runs("first") if run.data.tags.get(TAG) == first]
    assert second.info.run_name == "first again" and second.info.status == "FINISHED"
    assert second.data.tags["mlflow.source.name"] == f"python -m forge.reproduce {first}"
    assert second.data.tags["forge.identity"] != place.client.get_run(first).data.tags["forge.identity"]  # resume=auto finds the first
    then, now = place.histories(first), place.histories(second.info.run_id)
    values = sum(len(points) for key, points in then.items() if key.startswith(("train/", "val/")))
    names = sum(key.startswith(("train/", "val/")) for key in then)
    assert f"equal: all {values} values of {names} train/… and val/… metrics up to step 20 are the same to the digit" in out
    assert then["train/loss"] == now["train/loss"] and len(then["train/loss"]) == 20
    assert place.client.search_registered_models() == [] and place.runs("elsewhere") == []
    assert drifted(out) == {}


@pytest.fixture
def first(tales: Any) -> str:
    return str(tales.start(first_run).result())


@trains
@pytest.mark.slow
def test_another_version_is_named_and_the_numbers_may_still_be_equal(again: Reproduce, place: Place, first: str) -> None:
    kept = place.client.get_run(first).data.tags["forge.versions"]
    mlx = re.findall(r", mlx (\S+),", kept)[0]
    try:
        place.client.set_tag(first, "forge.versions", kept.replace(f", mlx {mlx}", ", mlx 0.1"))
        place.client.set_tag(first, "forge.blas", "another")
        code, out, _ = again(first[:8], ALLOWED, "--check")
        assert (code, drifted(out)["mlx"], list(drifted(out))) == (1, ["0.1", mlx], ["mlx", "BLAS"])
        code, out, _ = again(first[:8], ALLOWED, "steps=2")
        assert code == 0 and "up to step 2 are the same to the digit\nalthough this drifted: " in out and "mlx, BLAS" in out
    finally:
        place.client.set_tag(first, "forge.versions", kept)
        place.client.set_tag(first, "forge.blas", blas.describe())


@trains
@pytest.mark.slow
def test_some_steps_are_enough_to_see_from_where_numbers_differ(again: Reproduce, place: Place, first: str) -> None:
    """The record of step 4 is changed in the last digits. The schedule is that of all 20 steps."""
    (value,) = [value for step, value in place.losses(first) if step == 4]
    runs = len(place.runs("first"))
    place.client.log_metric(first, "train/loss", value + 1e-9, step=4)
    try:
        code, out, _ = again("first", "steps=3", ALLOWED)
        assert code == 0 and "up to step 3 are the same" in out
        code, out, _ = again(first, "steps=6", ALLOWED)
        assert code == 1 and f"differs from step 4 on: train/loss was {value + 1e-9!r}, is {value!r} (1e-09 apart)" in out
        second = place.runs("first")[-1]
        assert [step for step, _ in place.losses(second.info.run_id)] == [1, 2, 3, 4, 5, 6]
        assert second.data.tags["forge.stop_reason"] == "step 6 is the last to be made again"
        assert len(place.runs("first")) == runs + 2
    finally:
        place.client.log_metric(first, "train/loss", value, step=4)


@pytest.fixture
def changed(request: pytest.FixtureRequest) -> Iterator[Callable[[Path, bytes], None]]:
    """changed(file, content) for the time of the test."""
    kept: dict[Path, bytes] = {}

    def change(file: Path, content: bytes) -> None:
        kept.setdefault(file, file.read_bytes())
        file.write_bytes(content)

    yield change
    for file, content in kept.items():
        file.write_bytes(content)


@pytest.mark.slow
def test_other_data_is_named_and_nothing_is_trained(again: Reproduce, place: Place, first: str, changed: Any) -> None:
    file = sorted((place.folder / "documents").iterdir())[0]
    runs = len(place.runs("first"))
    changed(file, file.read_bytes() + b"more")
    code, out, errors = again(first, ALLOWED)
    assert (code, errors) == (1, "") and "data" in drifted(out) and not {"base", "mlx", "configuration", "tokenizer"} & {*drifted(out)}
    assert "so the numbers can't be equal; nothing was trained" in out and len(place.runs("first")) == runs


@pytest.mark.slow
def test_that_it_went_on_is_told_of_a_run_that_stopped_and_not_of_a_child_that_its_parent_made(
    again: Reproduce, place: Place, first: str
) -> None:
    overrides = reader.text(place.client, first, "config/overrides.txt") or ""
    try:
        place.client.log_text(first, f"{overrides}\nresume={first}", "config/overrides.txt")
        assert "it went on" not in again(first, ALLOWED, "--check")[1]
        place.client.set_tag(first, "forge.went_on_after", "12")
        assert "it went on after a stop at step 12; " in again(first, ALLOWED, "--check")[1]
    finally:
        place.client.log_text(first, overrides, "config/overrides.txt")
        if "forge.went_on_after" in place.client.get_run(first).data.tags:
            place.client.delete_tag(first, "forge.went_on_after")


@pytest.mark.slow
def test_another_base_is_named(again: Reproduce, place: Place, first: str, changed: Any) -> None:
    file = place.folder / "base" / "model.safetensors"
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    changed(file, bytes(weights))
    code, out, _ = again(first, ALLOWED, "--check")
    assert (code, list(drifted(out))) == (1, ["base"])
    (then, now) = drifted(out)["base"]
    assert place.client.get_run(first).data.tags["forge.base"].rpartition(" ")[2].startswith(then) and now != then


@pytest.mark.slow
def test_data_that_is_gone_is_said(again: Reproduce, place: Place, first: str) -> None:
    folder = place.folder / "documents"
    folder.rename(place.folder / "moved")
    try:
        code, out, _ = again(first, ALLOWED)
    finally:
        (place.folder / "moved").rename(folder)
    assert code == 1 and list(drifted(out)) == ["data"] and f"path={folder}: there is no such folder" in out


@pytest.mark.slow
def test_targets_have_to_be_allowed_anew(again: Reproduce, first: str) -> None:
    code, _, errors = again(first)
    assert code == 2 and "'planted.Fault' is outside the allowed packages" in errors and "allowed_targets" in errors


# ---- without training -------------------------------------------------------------------------------------------------


@pytest.fixture
def tracked(home: Path) -> Callable[..., Any]:
    """tracked(name, metrics, parent) -> the id of a run that was made without forge.train."""

    def make(name: str, metrics: dict[str, float], parent: str | None = None) -> str:
        spec = TrackingSpec(uri=None, experiment="reproduce", run_name=name, parent_run=parent, dashboard=True, tags={})
        with open_run(spec, name) as run:
            run.log(metrics, 0)
        return run.id

    return make


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        ((), 2, "the following arguments are required: RUN; write python -m forge.reproduce [-h]"),
        (("scored", "steps=0"), 2, "steps: 0 should be greater than or equal to 1"),
        (("scored", "setps=1"), 2, "setps: unknown key; did you mean 'steps'?"),
        (("scored", "check"), 2, "check: not a setting; write key=value (valid: steps=…, allowed_targets=…)"),
        (("nobody",), 7, "nobody: no run has this id or name"),
        (("scored",), 7, "run scored (ID) holds no step of a training, so there is nothing to make again"),
        (("family",), 7, "run family (ID) trained nothing itself; name one of its 1 runs: member ("),
        (("member",), 7, "run member (ID) holds no config/config.yaml"),
        (("open",), 7, "run open (ID) is RUNNING; wait for its end"),
    ],
)
def test_what_can_not_be_made_again_is_one_line(
    words: tuple[str, ...], code: int, why: str, tracked: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    name = words[0] if words else "scored"
    made = {"scored": tracked("scored", {"final/loss": 1.0})}
    made["family"] = tracked("family", {"best/val_loss": 1.0})
    made["member"] = tracked("member", {"val/loss": 1.0}, made["family"])
    client = store.connect(None)
    made["open"] = client.create_run(store.experiment(client, "reproduce"), run_name="open").info.run_id
    capsys.readouterr()
    try:
        assert reproduce.main(list(words)) == code
    finally:
        client.set_terminated(made["open"])
    out, errors = capsys.readouterr()
    assert errors.startswith("error: " + why.replace("ID", made.get(name, "")[:8])) and errors.count("\n") == 1 and out == ""


def test_under_mlx_launch_it_refuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLX_RANK", "1")
    assert reproduce.main(["any"]) == 2 and "leave out mlx.launch" in capsys.readouterr().err


def test_every_value_up_to_the_step_is_compared_and_losses_are_named_first() -> None:
    """Step 2 differs in two metrics, by 1/1001 and 1/3 of the larger one; step 3 lacks a value; step 4 is not looked at."""
    first = [(1, {"train/loss": 2.0}), (2, {"train/epoch": 2.0, "train/loss": 1000.0}), (3, {"val/loss": 1.0}), (4, {"train/loss": 5.0})]
    second = [(1, {"train/loss": 2.0, "train/new": 9.0}), (2, {"train/epoch": 3.0, "train/loss": 1001.0}), (4, {"train/loss": 6.0})]
    found = likeness(first, second, upto=2)
    assert (found.values, found.metrics) == (3, 2)
    assert found.differences == [Difference(2, "train/loss", 1000.0, 1001.0), Difference(2, "train/epoch", 2.0, 3.0)]
    assert found.sentence() == (
        "differs from step 2 on: train/loss was 1000.0, is 1001.0 (1 apart); most at step 2: train/epoch was 2.0, is 3.0 (1 apart)"
    )
    assert likeness(first, second, upto=3).sentence().endswith("most at step 3: val/loss was 1.0, is not there")
    assert likeness(first, second, upto=1).sentence().startswith("equal: all 1 values")


@pytest.mark.parametrize(
    ("tag", "kind", "revision", "overrides"),
    [
        ("registry models:/a@champion models:/a/3", "registry", "models:/a/3", ["model.uri=models:/a/3"]),
        ("hub some/model 0a1b", "hub", "0a1b", ["model.revision=0a1b"]),
        (
            "hub some/model 0a1b quantised to 4 bits in groups of 64",
            "hub",
            "0a1b quantised to 4 bits in groups of 64",
            ["model.revision=0a1b"],
        ),
        ("local /my models/b f00d", "local", "f00d", []),
        ("scratch qwen3 f00d", "scratch", "f00d", []),
        ("", "", None, []),
    ],
)
def test_the_base_is_the_one_that_the_run_had(tag: str, kind: str, revision: str | None, overrides: list[str]) -> None:
    seen = reader.Seen("id", "name", "1", "FINISHED", 0, 1, {"forge.base": tag}, {}, {})
    assert pins.base_of(seen.tags) == (kind, revision) and pins.exact(seen) == overrides


def test_a_base_that_moved_since_is_taken_as_it_was_and_the_configuration_is_the_run_s() -> None:
    config = jobs.single(["model=models:/a@champion"], "")
    assert config
    for tag, uri in (("registry models:/a@champion models:/a/3", "models:/a/3"), ("", "models:/a@champion")):
        own = pins.with_own_base(config, reader.Seen("id", "name", "1", "FINISHED", 0, 1, {"forge.base": tag}, {}, {}))
        assert own.model.keywords["uri"] == uri  # type: ignore[attr-defined]
        assert own.identity == config.identity and own.resolved == config.resolved


def test_paths_below_the_folder_of_the_start_are_told() -> None:
    config = jobs.single(["data=folder", "data.path=notes", "model=local", "model.path=/base"], "")
    assert config and pins.relative(config) == ["data.sources.folder.source.path=notes"]


def test_a_pin_that_was_not_recorded_or_not_looked_at_has_not_drifted() -> None:
    assert [Pin("a", then, now).drifted for then, now in (("1", "1"), (None, "1"), ("1", None), ("1", "2"))] == [False, False, False, True]
    assert [shown(value) for value in (None, "", "0123456789abcdef", "cpu\x1b[2J")] == ["not known", "none", "0123456789ab", "cpu\\x1b[2J"]


@pytest.fixture
def machine_pins(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, tuple[str | None, str | None]]]:
    """machine_pins(tags) -> those that drifted, then and now, of a run that was made just so but for these tags."""
    config = jobs.single([], "")
    assert config
    monkeypatch.setattr(reader, "text", lambda *_: None)
    monkeypatch.setattr(provenance, "_git", lambda *_: None)

    def drifted_of(tags: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
        made = provenance.tags() | device.describe() | {"forge.processes": "1"} | tags
        found = pins.around(None, reader.Seen("id", "name", "1", "FINISHED", 0, 1, made, {}, {}), config)  # type: ignore[arg-type]
        return {pin.name: (pin.then, pin.now) for pin in found if pin.drifted}

    return drifted_of


def test_other_kernels_cores_and_processes_are_named(machine_pins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "kernels", lambda: "OpenBLAS 0.3.30, Haswell kernels")
    monkeypatch.setattr(blas, "cores", lambda: 4)
    monkeypatch.setattr(device.mx, "default_device", lambda: device.mx.Device(device.mx.cpu))
    assert machine_pins({}) == {}
    then = {"forge.blas_kernels": "OpenBLAS 0.3.30, SkylakeX kernels", "forge.cores": "8", "forge.processes": "2"}
    assert machine_pins(then) == {
        "BLAS kernels": ("OpenBLAS 0.3.30, SkylakeX kernels", "OpenBLAS 0.3.30, Haswell kernels"),
        "cores": ("8", "4"),
        "processes": ("2", "1"),
    }


def test_kernels_are_compared_between_openblas_alone(machine_pins: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "kernels", lambda: None)
    assert machine_pins({}) == {}
    assert machine_pins({"forge.blas": "another", "forge.blas_kernels": "OpenBLAS 0.3.30, Zen kernels"}) == {
        "BLAS": ("another", blas.describe())
    }


def test_the_ground_that_can_not_be_read_is_a_pin_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from forge import assemble

    def refuse(*_: Any) -> Any:
        raise DataError("a.txt: is empty")

    monkeypatch.setattr(assemble, "assemble", refuse)
    config = jobs.single([], "")
    assert config
    seen = reader.Seen("id", "name", "1", "FINISHED", 0, 1, {"forge.data_digest": "d", "forge.base": "local b r"}, {}, {})
    found = pins.ground(seen, replace(config))
    assert [(pin.name, pin.now) for pin in found if pin.drifted] == [("data", "a.txt: is empty")]
