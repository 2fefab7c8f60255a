"""Room on disk, and what forge takes of it. Looking at many files is given up after two seconds, and what was seen by then is told."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from forge import paths
from forge.checks import Finding

_GB = 10**9
_NONE_GB, _LITTLE_GB = 1.0, 10.0
_LOOK_S = 2.0


@dataclass(frozen=True)
class _Size:
    size: int
    whole: bool

    def __str__(self) -> str:
        return f"{'' if self.whole else 'more than '}{_words(self.size)}"


def room() -> Iterator[Finding]:
    """At the root, at the hub's cache and where temporary files go: places on one disk are told once."""
    from forge.models.hubcache import cache

    places = {"root": paths.root(), "hub cache": cache(), "temporary files": Path(tempfile.gettempdir())}
    disks: dict[int, list[str]] = {}
    for name, place in places.items():
        disks.setdefault(_there(place).stat().st_dev, []).append(name)
    for names in disks.values():
        yield _room(names, places[names[0]])
    yield writable("root", paths.root())


def writable(name: str, place: Path) -> Finding:
    """Whether files can be made there; where there is no such folder yet, in the one that it would be made in."""
    there = _there(place)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        way_out = f"mend {there} (owner, mode, mount, room), or set FORGE_HOME to another place"
        return Finding(f"{name} writable", "problem", f"{place}: can't be written ({error.strerror})", way_out)
    return Finding(f"{name} writable", "ok", f"{place}{'' if there == place else ' (not there yet)'}")


def sizes() -> Iterator[Finding]:
    """What forge keeps below the root."""
    runs = paths.runs()
    if not runs.is_dir():
        yield Finding("mlruns", "ok", f"{runs}: nothing is kept there yet")
        return
    deadline = time.monotonic() + _LOOK_S
    kept = {name: _size(runs / name, deadline) for name in ("cache", "checkpoints", "artifacts")}
    number = len(list((runs / "checkpoints").glob("*"))) if (runs / "checkpoints").is_dir() else 0
    told = ", ".join(f"{name} {size}" for name, size in kept.items())
    yield Finding("mlruns", "ok", f"{told} (of {number} run{'' if number == 1 else 's'}, {runs})")


def _room(names: list[str], place: Path) -> Finding:
    usage = shutil.disk_usage(_there(place))
    also = f", with the {' and the '.join(names[1:])}" if names[1:] else ""
    said = f"{_words(usage.free)} of {_words(usage.total)} free at {place}{also}"
    about = f"disk of {names[0]}"
    way_out = f"make room there: {paths.cache()} can go whole, and checkpoints of runs that nobody goes on with"
    if "root" not in names:
        way_out = "make room there, or set " + ("HF_HOME" if "hub cache" in names else "TMPDIR") + " to another disk"
    if usage.free < _NONE_GB * _GB:
        return Finding(about, "problem", said, way_out)
    if usage.free < _LITTLE_GB * _GB:
        return Finding(about, "note", said, way_out)
    return Finding(about, "ok", said)


def _words(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB else f"{size / 10**6:.1f} MB"


def _there(place: Path) -> Path:
    """The nearest folder that there is."""
    return next((one for one in (place, *place.parents) if one.is_dir()), Path("/"))


def _size(folder: Path, deadline: float) -> _Size:
    total, waiting = 0, [folder] if folder.is_dir() else []
    while waiting:
        if time.monotonic() > deadline:
            return _Size(total, whole=False)
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # removed meanwhile, or not ours to read
            continue
    return _Size(total, whole=True)
