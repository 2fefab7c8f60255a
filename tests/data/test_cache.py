"""The cache on disk: built once, whole or not there, and no larger than it may be."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from forge.data.cache import Cache
from forge.errors import DataError

ROOT = Path(__file__).parents[2]
KB = 1000


def write(folder: Path, size: int = 10) -> None:
    (folder / "content").write_bytes(b"x" * size)


def read(folder: Path) -> bytes:
    return (folder / "content").read_bytes()


def never(folder: Path) -> None:
    raise AssertionError("built again")


def folders(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.name != "locks"}


def used(place: Path, key: str, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(place / key, (then, then))


def test_a_key_is_built_once(tmp_path: Path) -> None:
    assert Cache(tmp_path, 1).get("a", write, read) == b"x" * 10
    assert Cache(tmp_path, 1).get("a", never, read) == b"x" * 10
    assert folders(tmp_path) == {"a"}


def test_without_a_key_it_is_built_each_time(tmp_path: Path) -> None:
    """The earlier folder is nobody's then, and goes."""
    cache, built = Cache(tmp_path, 1), []
    for size in (3, 4):
        assert cache.get(None, lambda folder, size=size: built.append(write(folder, size)), read) == b"x" * size
    assert len(built) == 2 and len(folders(tmp_path)) == 1


# ---- several processes ------------------------------------------------------------------------------------------------------


def ask(place: str, ready: "multiprocessing.Barrier", answers: "multiprocessing.Queue") -> None:
    """Building takes long enough for the other to ask meanwhile."""

    def build(folder: Path) -> None:
        (Path(place) / f"built by {os.getpid()}").touch()
        write(folder, 5)
        time.sleep(0.5)
        write(folder, 10)

    ready.wait()
    answers.put(Cache(Path(place), 1).get("a", build, read))


def test_of_two_processes_that_ask_at_once_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, answers = context.Barrier(2), context.Queue()
    both = [context.Process(target=ask, args=(str(tmp_path), ready, answers)) for _ in range(2)]
    for process in both:
        process.start()
    assert [answers.get(timeout=20) for _ in both] == [b"x" * 10] * 2
    for process in both:
        process.join()
    assert len(list(tmp_path.glob("built by *"))) == 1


def test_one_that_is_killed_while_building_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    """The next one that asks, for whatever key, removes the rest; its lock went with the process."""
    code = (
        "import sys, time, pathlib; from forge.data.cache import Cache\n"
        "def build(folder):\n"
        "    (folder / 'content').write_bytes(b'half')\n"
        "    print('building', flush=True)\n"
        "    time.sleep(60)\n"
        "Cache(pathlib.Path(sys.argv[1]), 1).get(sys.argv[2], build, None)\n"
    )
    for key in ("a", "b"):
        with subprocess.Popen([sys.executable, "-c", code, str(tmp_path), key], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "building\n"
            process.send_signal(signal.SIGKILL)
    assert folders(tmp_path) == {"a.partial", "b.partial"}
    assert Cache(tmp_path, 1).get("a", write, read) == b"x" * 10
    assert folders(tmp_path) == {"a"}


def test_what_another_process_is_building_stays(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        write(folder, 7)
        Cache(tmp_path, 1e-9).get("b", write, read)  # has room for nothing, and clears up

    assert Cache(tmp_path, 1).get("a", build, read) == b"x" * 7


def test_what_goes_away_while_sizes_are_looked_up_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 1)
    cache.get("old", write, read)
    listed = Path.iterdir

    def iterdir(folder: Path):
        found = list(listed(folder))
        if folder == tmp_path / "old":  # another process removes it now
            (folder / "content").unlink()
            folder.rmdir()
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert cache.get("new", write, read) == b"x" * 10


# ---- errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), FileNotFoundError(errno.ENOENT, "no such source")])
def test_an_error_while_building_passes_and_leaves_no_folder(tmp_path: Path, error: BaseException) -> None:
    def build(folder: Path) -> None:
        write(folder)
        raise error

    with pytest.raises(type(error)) as raised:
        Cache(tmp_path, 1).get("a", build, read)
    assert raised.value is error and folders(tmp_path) == set()
    assert Cache(tmp_path, 1).get("a", write, read) == b"x" * 10


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_with_the_folder_and_the_way_out(tmp_path: Path, code: int) -> None:
    def build(folder: Path) -> None:
        write(folder)
        raise OSError(code, os.strerror(code))

    with pytest.raises(DataError) as raised:
        Cache(tmp_path, 1).get("a", build, read)
    message = str(raised.value)
    assert message.startswith(str(tmp_path)) and os.strerror(code) in message and "FORGE_HOME" in message and "\n" not in message
    assert folders(tmp_path) == set()


def test_a_disk_that_is_full_when_the_last_byte_is_written_out_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        Cache(tmp_path, 1).get("a", write, read)
    assert folders(tmp_path) == set()


# ---- size -------------------------------------------------------------------------------------------------------------------


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    """Of 4, 4 and 4 kB 10 may stay. "a" was built first but asked for last, so "b" goes."""
    cache = Cache(tmp_path, 10 * KB / 1e9)
    for key, ago in (("a", 300), ("b", 200)):
        cache.get(key, lambda folder: write(folder, 4 * KB), read)
        used(tmp_path, key, ago)
    cache.get("a", never, read)
    cache.get("c", lambda folder: write(folder, 4 * KB), read)
    assert folders(tmp_path) == {"a", "c"}


def test_no_more_goes_than_has_to(tmp_path: Path) -> None:
    """4 + 4 + 4 kB; 8 may stay: the oldest goes, and the next, which fits then, stays."""
    cache = Cache(tmp_path, 8 * KB / 1e9)
    for key, ago in (("a", 300), ("b", 200)):
        cache.get(key, lambda folder: write(folder, 4 * KB), read)
        used(tmp_path, key, ago)
    cache.get("c", lambda folder: write(folder, 4 * KB), read)
    assert folders(tmp_path) == {"b", "c"}


def test_the_one_just_asked_for_stays_however_large(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 * KB / 1e9)
    cache.get("a", write, read)
    assert len(cache.get("large", lambda folder: write(folder, 5 * KB), read)) == 5 * KB
    assert folders(tmp_path) == {"large"}
    cache.get("large", never, read)


def test_abandoned_folders_go_even_where_there_is_room(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1)
    cache.get("kept", write, read)
    for name in ("a.partial", "once-0123", "once-4567.partial"):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    cache.get("b", write, read)
    assert folders(tmp_path) == {"kept", "b"}


def test_a_mapped_array_can_be_read_after_its_folder_went(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1e-9)
    numbers = np.arange(100_000)
    mapped = cache.get("a", lambda folder: np.save(folder / "n.npy", numbers), lambda folder: np.load(folder / "n.npy", mmap_mode="r"))
    cache.get("b", write, read)
    assert folders(tmp_path) == {"b"}
    assert isinstance(mapped, np.memmap) and np.array_equal(mapped, numbers)
