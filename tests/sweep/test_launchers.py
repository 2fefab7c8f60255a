"""Children elsewhere: on submitit's and Ray's local forms, on a SLURM of five lines of shell, and what is refused before that."""

import importlib.util
import os
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf

from forge import jobs
from forge.errors import ConfigError
from forge.sweep import clusters, launchers
from forge.sweep.elsewhere import Elsewhere
from forge.sweep.launch import Ended, Job

# In place of the module that trains: what a child's process may do to its launcher. It too ends when its standard input is closed.
TOY_CHILD = """
import os, signal, sys
print("this is", *sys.argv[1:], flush=True)
what = sys.argv[1]
if what == "exit":
    sys.exit(int(sys.argv[2]))
if what == "waits":
    sys.stdin.buffer.read()
    sys.exit(143)
os.kill(os.getpid() if what == "dies" else os.getppid(), signal.SIGKILL)
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Makes a job whose process does as the words say."""
    package = tmp_path / "run" / "forge" / "sweep"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    (package / "child.py").write_text(TOY_CHILD)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)

    def job(*words):
        name = "-".join(words)
        return Job(0, name, name, words, tmp_path / "run", tmp_path / name / "log.txt")

    return job


def composed(*words):
    """Hydra's settings of a sweep with these words."""
    asked = jobs.preflight(["-m", "seed=1,2", *words])
    assert asked is not None and asked.hydra is not None
    return asked.hydra


def made(folder, *words):
    make = launchers.chosen(composed(*words))
    assert make is not None
    return make(folder)


def ours(*_):
    """A handler of signals."""


@pytest.fixture(scope="module", params=["submitit_local", "ray"])
def local(request, tmp_path_factory):
    pytest.importorskip("submitit" if request.param == "submitit_local" else "ray")
    words = ["+hydra.launcher.ray.init.num_cpus=4"] if request.param == "ray" else []
    former = signal.signal(signal.SIGTERM, ours)
    launcher = made(tmp_path_factory.mktemp("launcher"), f"hydra/launcher={request.param}", *words)
    yield launcher
    launcher.close()
    signal.signal(signal.SIGTERM, former)


def ended(futures, seconds=90):
    return [future.result(timeout=seconds) for future in futures]


@pytest.mark.slow
def test_each_job_ends_as_its_process_does_and_logs_where_it_was_told(local, toy):
    asked = [toy("exit", "0"), toy("exit", "3"), toy("dies")]
    found = ended([local.submit(job) for job in asked])
    assert [one.exit_code for one in found] == [0, 3, -signal.SIGKILL]
    assert [one.tail for one in found] == ["this is exit 0", "this is exit 3", "this is dies"]
    assert [job.log.read_text() for job in asked] == [one.tail + "\n" for one in found]


@pytest.mark.slow
def test_a_job_lost_with_its_machine_has_a_cause_and_is_not_started_again(local, toy):
    job = toy("kills its worker")
    (found,) = ended([local.submit(job)])
    assert found.exit_code == 1
    assert found.tail.startswith("error: ") and "without a result" in found.tail and "\n" not in found.tail
    time.sleep(2)
    assert job.log.read_text().count("this is") == 1


@pytest.mark.slow
def test_a_killed_launcher_leaves_nothing_running(local, toy):
    job = toy("waits")
    future = local.submit(job)
    wait_for(lambda: processes(job) and job.log.read_text())
    local.stop()  # it has begun, so this is not for it
    time.sleep(1)
    assert not future.done()
    local.kill()
    assert future.result(timeout=1).exit_code == -signal.SIGKILL
    wait_for(lambda: not processes(job))


def processes(job):
    """Those of its child, wherever the launcher has them."""
    found = psutil.process_iter(["cmdline", "cwd", "status"])
    return [p for p in found if p.info["cwd"] == str(job.folder) and "forge.sweep.child" in (p.info["cmdline"] or [])]


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.slow
def test_our_signal_handlers_are_left_alone(local):
    assert signal.getsignal(signal.SIGTERM) is ours


# ---- SLURM ------------------------------------------------------------------------------------------------------------

# $SLURM_TOY: a folder with what was submitted, what was cancelled, and what the accounting says. Like the real one, sbatch runs a copy of
# the script: submitit moves its own as soon as sbatch has ended.
SLURM = {
    "sbatch": """cp "$1" "$SLURM_TOY/script"
[ -f "$SLURM_TOY/refuses" ] && { echo "sbatch: error: invalid partition specified: moon" >&2; exit 1; }
if [ ! -f "$SLURM_TOY/queue" ]; then
    SLURM_JOB_ID=$$ SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 setsid sh "$SLURM_TOY/script" > "$SLURM_TOY/said" 2>&1 &
fi
echo "Submitted batch job $$" """,
    "srun": 'while :; do case "$1" in --unbuffered) shift;; --output|--error) shift 2;; *) break;; esac; done; exec "$@"',
    "sacct": 'echo "JobID|State|NodeList"; for id; do echo "$id|$(cat "$SLURM_TOY/state")|node1"; done',
    "scancel": 'echo "$@" >> "$SLURM_TOY/cancelled"',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, body in SLURM.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    (folder / "state").write_text("RUNNING")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_TOY", str(folder))
    monkeypatch.setattr(clusters, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(clusters, "_GRACE_S", 0.2)
    return folder


@pytest.fixture
def queue(slurm, tmp_path):
    launcher = made(
        tmp_path / "launcher",
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.mem_gb=32",
        "hydra.launcher.gpus_per_node=1",
        "+hydra.launcher.additional_parameters.mail-type=FAIL",
    )
    yield launcher
    launcher.close()


def test_slurm_is_asked_for_what_was_asked(queue, slurm, toy):
    assert ended([queue.submit(toy("exit", "3"))]) == [Ended(3, "this is exit 3")]
    wanted = [
        "partition=gpu",
        "time=90",
        "mem=32GB",
        "gpus-per-node=1",
        "signal=USR2@120",
        "job-name=forge",
        "mail-type=FAIL",
        "no-requeue",
    ]
    lines = (slurm / "script").read_text().splitlines()
    assert {f"#SBATCH --{option}" for option in wanted} <= set(lines)
    assert not any("None" in line for line in lines)


@pytest.mark.parametrize("state", ["NODE_FAIL", "CANCELLED by 1000"])
def test_a_slurm_job_that_ends_without_a_word_has_its_state_as_the_cause(queue, slurm, toy, state):
    (slurm / "queue").touch()
    future = queue.submit(toy("waits"))
    time.sleep(1)
    assert not future.done()
    (slurm / "state").write_text(state)
    found = future.result(timeout=20)
    assert found.exit_code == 1
    assert re.match(rf"error: SLURM job \d+ ended as {state.split()[0]}, without a result", found.tail)


def test_out_of_time_the_child_ends_by_itself_and_the_cause_is_told(queue, slurm, toy):
    """SLURM warns submitit's process, which then closes the child's standard input and waits for it."""
    job = toy("waits")
    future = queue.submit(job)
    wait_for(lambda: processes(job) and job.log.read_text())
    (child,) = processes(job)
    child.parent().send_signal(signal.SIGUSR2)
    found = future.result(timeout=20)
    assert found.exit_code == 1 and re.fullmatch(r"error: SLURM job \d+: it was preempted", found.tail)
    assert not processes(job)


def test_what_sbatch_says_is_the_cause(queue, slurm, toy):
    (slurm / "refuses").touch()
    (found,) = ended([queue.submit(toy("exit", "0"))])
    assert found.exit_code == 1 and found.tail.startswith("error: sbatch did not take it") and "invalid partition" in found.tail


def test_stop_takes_waiting_jobs_from_the_queue(queue, slurm, toy):
    (slurm / "queue").touch()
    future = queue.submit(toy("waits"))
    queue.stop()
    assert future.result(timeout=1).exit_code == -signal.SIGINT
    assert re.fullmatch(r"\d+\n", (slurm / "cancelled").read_text())


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_the_default_is_the_pool_of_this_machine():
    assert launchers.chosen(composed()) is None


def test_a_wrong_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\.partitoin: unknown key.*partition"):
        launchers.chosen(composed("hydra/launcher=submitit_slurm", "+hydra.launcher.partitoin=gpu"))


def test_other_launchers_are_refused_with_what_there_is():
    joblib = {"launcher": {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}}
    hydra = OmegaConf.create({**joblib, "runtime": {"choices": {"hydra/launcher": "joblib"}}})
    with pytest.raises(ConfigError, match=r"^hydra/launcher=joblib: forge has submitit_local, submitit_slurm, ray;.* sweep\.jobs=N$"):
        launchers.chosen(hydra)


@pytest.mark.parametrize(("name", "extra"), [("submitit_local", "slurm"), ("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_missing_extra_is_one_line(name, extra, monkeypatch):
    hydra = composed(f"hydra/launcher={name}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"^hydra/launcher={name} needs \w+: pip install 'forge-mlx\[{extra}\]'$"):
        launchers.chosen(hydra)


def test_without_slurm_it_says_so(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no srun"):
        made(tmp_path, "hydra/launcher=submitit_slurm")


def test_ray_options_that_it_does_not_have_are_refused(tmp_path):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"^hydra/launcher=ray: .*num_gpu"):
        made(tmp_path, "hydra/launcher=ray", "+hydra.launcher.ray.remote.num_gpu=1")


# ---- the launcher itself ----------------------------------------------------------------------------------------------


class ToyCluster:
    def __init__(self):
        self.cancelled, self.results = [], {}

    def start(self, task):
        return task.job.run_id

    def ended(self, handle):
        result = self.results.get(handle)
        if isinstance(result, Exception):
            raise result
        return result

    def cancel(self, handle):
        self.cancelled.append(handle)

    def close(self):
        pass


def test_stop_is_for_those_that_wait_and_kill_for_all(tmp_path, toy):
    cluster = ToyCluster()
    launcher = Elsewhere(cluster, tmp_path / "launcher")
    waits, runs = (launcher.submit(toy(name)) for name in ("waits", "runs"))
    (tmp_path / "launcher" / "runs.began").touch()
    launcher.stop()
    assert (cluster.cancelled, waits.result(timeout=0).exit_code, runs.done()) == (["waits"], -signal.SIGINT, False)
    launcher.kill()
    assert (cluster.cancelled, runs.result(timeout=0).exit_code) == (["waits", "runs"], -signal.SIGKILL)
    launcher.close()


def test_results_come_as_they_end_and_a_bug_hangs_nothing(tmp_path, toy):
    cluster, before = ToyCluster(), set(threading.enumerate())
    launcher = Elsewhere(cluster, tmp_path / "launcher")
    slow, quick, broken = (launcher.submit(toy(name)) for name in ("slow", "quick", "broken"))
    cluster.results = {"quick": Ended(0, "done"), "broken": OSError("stale file handle")}
    assert quick.result(timeout=5) == Ended(0, "done")
    assert isinstance(broken.exception(timeout=5), OSError)
    assert not slow.done()
    cluster.results["slow"] = Ended(0, "")
    assert slow.result(timeout=5).exit_code == 0
    launcher.close()
    assert set(threading.enumerate()) <= before
