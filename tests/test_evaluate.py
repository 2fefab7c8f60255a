"""python -m forge.evaluate: models and runs measured, what is logged and shown of them, and what is refused."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge import jobs
from forge.errors import ModelError
from forge.evaluate import main
from forge.models import Loaded, fuse
from forge.settings import TrackingSpec
from tests.place import ROOT, TINY, Life, Place, clean, looks_at

_DATA = ("data=files", "data.template=simple", "data.sequence_length=96", "data.valid_fraction=0.4", "data.test_fraction=0.1")
_ASKED = ("evaluation.answers=9", "evaluation.samples=2", "evaluation.max_new_tokens=8")


def talk(folder: Path) -> Path:
    """60 conversations, whose answer stands in the question; and the list that names them."""
    turns = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"it is {n}"}] for n in range(60)]
    (folder / "talk.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    (folder / "files.txt").write_text("talk.jsonl\n")
    return folder / "files.txt"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "which model? Write model=models:/NAME@ALIAS, model=FOLDER, or run=RUN"),
        (["data=instructions"], 2, "which model?"),
        (["run=a", "model=b"], 2, "model=b: run=RUN has its own model and base; leave it out"),
        (["run=a", "base=b"], 2, "base=b: run=RUN has its own model and base; leave it out"),
        (["run=a", "run=b"], 2, "run=: give one run"),
        (["run=a", "tracking=local"], 2, "tracking=local: the run's own configuration is taken; set keys of it"),
        (["run=a", "data.path=/b"], 2, "data.path: the run's sources have their paths by now; set data.sources.NAME.source.path"),
        (["run=a", "data=instructions"], 2, "data=instructions: the run's own configuration is taken; set keys of it"),
        (["base=", "model=/tmp"], 2, "base=: give one model"),
        (["model=/tmp", "adapter=lora"], 2, "adapter=lora: a model is measured as it is; leave it out, or train"),
        (["model=/tmp", "evaluation.answer=3"], 2, "evaluation.answer: unknown key; did you mean 'answers'?"),
        (["model=/tmp", "seed=1,2", "-m"], 2, "evaluate looks at one configuration: leave out -m"),
        (
            ["model=nope"],
            2,
            "model=nope: there is no such option (valid: hub, local, registry, scratch_tiny); or give a model's folder, or a registered "
            "one as models:/NAME@ALIAS",
        ),
        (["model=/no/such"], 2, "model=/no/such: there is no such folder"),
        (["model=/tmp", "base=/no/such"], 2, "model=/no/such: there is no such folder"),
    ],
)
def test_a_mistake_is_one_line(capfd: pytest.CaptureFixture[str], words: list[str], code: int, said: str) -> None:
    assert main(words) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"error: {said}") and err.count("\n") == 1


def test_help_is_said_without_a_model(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert capfd.readouterr().out.startswith("python -m forge.evaluate model=MODEL")


@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes:DeprecationWarning")  # MLflow's log_table, on pandas 3
def test_two_models_are_measured_side_by_side(
    home: Path, make_tiny_model: Callable[..., Loaded], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Random weights of two seeds. Each one's numbers are those that it has alone."""
    from forge.reports import documents, questions
    from forge.tracking import reader

    folders = []
    for seed in (0, 1):
        loaded = make_tiny_model(seed)
        fuse.save(fuse.fuse(loaded), tmp_path / f"m{seed}")
        folders.append(str(tmp_path / f"m{seed}"))
    common = [*_DATA, f"data.path={talk(tmp_path)}", *_ASKED, "evaluation.retention=true", "tracking.experiment=measured"]
    both_words = [f"model={folders[1]}", f"base={folders[0]}", *common, "tracking.run_name=both", "tracking.system_metrics=null"]
    assert main(both_words) == 0
    out = capfd.readouterr().out
    assert main([f"model={folders[0]}", *common, "tracking.run_name=alone", "tracking.system_metrics=null"]) == 0
    client = reader.opened(None)
    both, alone = (reader.find(client, name) for name in ("both", "alone"))
    assert both.status == "FINISHED" and both.tags["forge.kind"] == "evaluation"
    assert shlex.split(both.tags["mlflow.source.name"]) == ["python", "-m", "forge.evaluate", *both_words]
    assert both.tags["forge.base_model"].endswith(reader.find(client, "alone").tags["forge.final_model"].split("/")[-1])
    for name in ("loss", "bits_per_byte/files", "f1", "exact_match/files", "retention", "retention/json"):
        assert both.metrics[f"base/{name}"] == alone.metrics[f"final/{name}"], name
    assert both.metrics["final/loss"] != both.metrics["base/loss"] and both.metrics["test/loss"] != alone.metrics["test/loss"]
    forgotten = both.metrics["final/loss/files"] - both.metrics["base/loss/files"]
    assert both.metrics["final/forgetting/files"] == pytest.approx(forgotten)
    assert both.metrics["final/answers"] == 9 and "base/loss" not in alone.metrics
    for file in (documents.FILE, documents.BASE_FILE, questions.FILE, questions.BASE_FILE):
        assert reader.text(client, both.id, file)
    samples = json.loads(reader.text(client, both.id, "evaluation/samples.json") or "")
    assert samples["columns"] == ["model", "question", "answer", "reference", "source", "ended", "prompt"] and len(samples["data"]) == 4
    shown = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("loss ", "f1 ", "retention/json "))}
    assert shown["loss"] == [f"{both.metrics[f'{which}/loss']:.4g}" for which in ("base", "final")] and len(shown) == 3
    assert f"python -m forge.compare {both.id[:8]}@base {both.id[:8]}" in out


def test_a_run_s_base_is_the_version_that_it_had_where_an_alias_moved_since(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.tracking import recorded
    from forge.tracking.run import run as open_run

    spec = TrackingSpec(uri=None, experiment="moved", run_name="moved", parent_run=None, dashboard=False, tags={})
    with open_run(spec, "i", tags={"forge.base": "registry models:/a@champion models:/a/3"}):
        pass
    composed = []
    monkeypatch.setattr(recorded, "recorded", lambda client, run, overrides, allowed: composed.append(overrides) or jobs.single([], ""))
    assert main(["run=moved", "evaluation.answers=3"]) == 7  # no checkpoint
    assert composed == [["model.uri=models:/a/3"], ["model.uri=models:/a/3", "evaluation.answers=3"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes:DeprecationWarning")  # MLflow's log_table, on pandas 3
def test_rows_that_a_run_was_trained_on_are_not_measured_in_silence(
    place: Place, make_tiny_model: Callable[..., Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Under another seed some 0.6 of the 24 validation rows of 60. A base without a tokenizer of its own would have another one too."""
    fuse.save(fuse.fuse(make_tiny_model()), tmp_path / "base")
    local = ("model=local", f"model.path={tmp_path / 'base'}", *(f"~model.{key}" for key in TINY))
    short = ("evaluation.answers=0", "evaluation.samples=0", "trainer.budget=5 steps")
    runs = [place.life(name, *asked(place), *short, *more).runs[0].info.run_id for name, more in (("local", local), ("scratch", ()))]
    monkeypatch.setenv("FORGE_HOME", str(place.folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(place.folder)
    capfd.readouterr()
    codes = [main([f"run={run}", "allowed_targets=[planted.]", "data.split_seed=7", "tracking.run_name=again"]) for run in runs]
    out, err = capfd.readouterr()
    assert codes[0] == 0, err
    (measured,) = [run for run in place.runs("local") if run.data.tags.get("forge.evaluates") == runs[0]]
    why = measured.data.tags["forge.not_held_out"]
    found = re.fullmatch(
        r"not held out: the run was trained on (\d+) of (\d+) validation rows and \d+ of \d+ test rows of source 'files'", why
    )
    assert found and 0 < int(found[1]) < int(found[2]), why
    assert out.startswith(f"WARNING: {why}\n")
    assert codes[1] == ModelError.exit_code and "its tokenizer was made from its training text, and this is another" in err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:For backward compatibility, 'str' dtypes:DeprecationWarning")  # MLflow's log_table, on pandas 3
def test_a_checkpoint_that_training_removes_meanwhile_is_not_missed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the base is measured a run that goes on finds a better checkpoint, and removes the one that was the best."""
    from forge.evaluation import measure
    from forge.training.checkpoint import steps

    life = place.life("moving", "trainer.keep=9", "trainer.budget=10 steps")
    run_id, real = life.runs[0].info.run_id, measure.measure
    folder = place.checkpoint(run_id, 0).parent

    def removing(*given: Any) -> Any:
        for step in steps(folder)[2:]:
            shutil.rmtree(place.checkpoint(run_id, step))
        return real(*given)

    monkeypatch.setattr(measure, "measure", removing)
    monkeypatch.setenv("FORGE_HOME", str(place.folder / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.syspath_prepend(place.folder)
    assert main([f"run={run_id}", "allowed_targets=[planted.]"]) == 0


# ---- as processes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(place: Place) -> Place:
    """The user's folder, with conversations in it before any run is."""
    talk(place.folder)
    return place


def asked(place: Place) -> list[str]:
    return [*_DATA, f"data.path={place.folder / 'files.txt'}", "evaluation.full_tokens=2000", *_ASKED, "callbacks.planted.kind=clock"]


def trained_and_measured(place: Place) -> tuple[Life, int, str]:
    life = place.life("asked", *asked(place), "tracking.run_name=asked", "evaluation.retention=true")
    command = [sys.executable, "-m", "forge.evaluate", f"run={life.runs[0].info.run_id}", "allowed_targets=[planted.]"]
    settings = clean() | {"FORGE_HOME": str(place.folder / "home"), "PYTHONPATH": f"{place.folder}:{ROOT}"}
    done = subprocess.run(command, env=settings, cwd=place.folder / "elsewhere", capture_output=True, text=True, timeout=300)
    return life, done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@looks_at(trained_and_measured)
def test_a_run_asks_before_and_after_and_is_measured_again_to_the_digit(place: Place, told: Any) -> None:
    life, code, output = told
    assert life.code == code == 0, life.output + output
    run, again = place.runs("asked")
    if "forge.kind" in run.data.tags:
        run, again = again, run
    metrics = run.data.metrics
    assert again.data.tags["forge.evaluates"] == run.info.run_id and "forge.not_held_out" not in again.data.tags
    for prefix in ("base", "final"):
        assert metrics[f"{prefix}/answers"] == 9 and 0 <= metrics[f"{prefix}/retention"] <= 1
        for name in ("loss", "f1", "rougeL", "bleu", "retention", "retention/case", "perplexity/files"):
            assert again.data.metrics[f"{prefix}/{name}"] == metrics[f"{prefix}/{name}"], name
    assert metrics["final/loss"] < metrics["base/loss"]
    steps = {Path(each.path).name for each in place.client.list_artifacts(run.info.run_id, "evaluation/samples")}
    assert steps == {f"step-{step:08d}.json" for step in (0, 5, 10, 15, 20)}
    assert sampled_at(place, run) == [*(step for step in (0, 5, 10, 15, 20) for _ in range(2))]
    kept = json.loads(Path(place.client.download_artifacts(run.info.run_id, "evaluation/retention_base.json")).read_text())
    assert kept["columns"] == ["kind", "prompt", "answer", "followed"] and len(kept["data"]) == 40


def killed_and_gone_on_with(place: Place) -> tuple[Life, Life]:
    words = [*asked(place), "callbacks.planted.kind=kill", "resume=auto"]
    return place.life("twice", *words, FORGE_TEST_FAULTS="kill"), place.life("twice", *words)


@pytest.mark.slow
@looks_at(killed_and_gone_on_with)
def test_samples_of_all_lives_stand_in_the_run_s_table(place: Place, told: tuple[Life, Life]) -> None:
    first, second = told
    (run,) = second.runs
    assert first.code != 0 and second.code == 0, first.output + second.output
    assert sorted(set(sampled_at(place, run))) == [0, 5, 10, 15, 20]


def sampled_at(place: Place, run: Any) -> list[int]:
    """The steps of the rows of a run's table."""
    table = json.loads(Path(place.client.download_artifacts(run.info.run_id, "evaluation/samples.json")).read_text())
    return [row[table["columns"].index("step")] for row in table["data"]]


def planned_and_slow_to_answer(place: Place) -> Life:
    """By an estimate of 100 seconds, kept for the configuration of the run before."""
    before = place.runs("asked")[0].data.tags
    parts: dict[str, Any] = {name: {} for name in ("epochs", "memory")} | {"seconds": {"training": 100.0}}
    numbers = dict.fromkeys(("trainable", "parameters", "peak_gib", "checkpoint_gib", "disk_gib"), 1)
    made = {"identity": before["forge.identity"], "device": before["forge.device_name"], "steps": 20, "tokens": 1.0, **numbers, **parts}
    file = place.folder / "home" / "mlruns" / "plans" / before["forge.identity"] / "plan.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(made))
    return place.life("slow", *asked(place), FORGE_TEST_FAULTS="clock", FORGE_TEST_STEP="0")


@pytest.mark.slow
@looks_at(planned_and_slow_to_answer, after=trained_and_measured)
def test_a_plan_is_not_blamed_for_what_answers_took(place: Place, told: Life) -> None:
    """Each time that questions are answered the clock moves by a million seconds, to the plan's hundred."""
    (run,) = told.runs
    assert run.info.status == "FINISHED" and 0 < run.data.metrics["plan/seconds_ratio"] < 1000, told.output


def short_of_memory(place: Place, step: int, samples: int) -> tuple[Life, Life]:
    own = [*asked(place), "callbacks.planted.kind=generation", f"seed={step}"]
    first = place.life(f"short-{step}", *own, f"evaluation.samples={samples}", FORGE_TEST_FAULTS="generation", FORGE_TEST_STEP=f"{step}")
    return first, place.life(f"short-{step}", *own, "evaluation.answers=0", "evaluation.samples=0", "resume=auto")


@pytest.mark.slow
@pytest.mark.parametrize(("step", "samples"), [(5, 2), (20, 0)])
@looks_at(short_of_memory)
def test_memory_that_answers_run_out_of_is_told_with_fewer_of_them(step: int, samples: int, told: tuple[Life, Life]) -> None:
    """At an evaluation, and at the end; with fewer answers the same run goes on."""
    first, second = told
    assert first.code == 5 and "Traceback" not in first.output, first.output
    (line,) = [line for line in first.output.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: step {step}, answering questions: out of memory at ") and "evaluation.answers=" in line
    assert "micro_batch" not in line
    (run,) = second.runs
    assert run.info.status == "FINISHED", second.output
