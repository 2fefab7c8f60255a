"""Folders on disk that are made once and kept by key, up to a size: surveys of sources, tokenised rows, near duplicates.

A folder is built under another name and renamed, so that a kill leaves whole ones only. A lock a key lets one of several
processes build while the others wait. What was used longest ago goes first when there is too much.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from forge.errors import DataError
from forge.paths import flush

T = TypeVar("T")
_GB = 10**9
_PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Cache:
    """`limit_gb` holds for all folders together, but never costs the one that is asked for. `removed` is told of those
    that went for their size, and why."""

    def __init__(self, folder: Path, limit_gb: float, removed: Callable[[Path, str], None] = lambda path, why: None):
        self._folder, self._limit, self._removed = folder, limit_gb * _GB, removed

    def get(self, key: str | None, build: Callable[[Path], None], open: Callable[[Path], T]) -> T:
        """open(the folder of `key`), after build(folder) where there is none yet; with key None always built, and dropped in time.

        What `open` maps into memory stays readable when the folder is removed later. Raises DataError when the disk is full
        or the cache can't be written.
        """
        key = key or f"once-{uuid.uuid4().hex[:16]}"
        with self._alone(key):
            final = self._folder / key
            if not final.is_dir():
                self._build(final, build)
                self._shrink(keep=key)
            os.utime(final)
            return open(final)

    def _build(self, final: Path, build: Callable[[Path], None]) -> None:
        partial = final.with_name(final.name + _PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            build(partial)
            for file in partial.iterdir():
                flush(file)
            os.replace(partial, final)
            flush(self._folder)
        except OSError as error:
            if error.errno not in _FULL:
                raise  # of what is read
            raise DataError(
                f"{self._folder}: can't keep prepared data there ({error.strerror}); make room, or set FORGE_HOME to a larger disk"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("forge: another process prepares the same data; waiting for it", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, key: str) -> FileLock:
        file = self._lock_file(key)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        except OSError as error:
            raise DataError(
                f"{error.filename}: can't be written ({error.strerror}); mend that, or set FORGE_HOME to another place"
            ) from error
        return FileLock(file)

    def _lock_file(self, key: str) -> Path:
        return self._folder / "locks" / key

    def _shrink(self, keep: str) -> None:
        found = sorted((*about, path) for path in self._entries() if (about := _about(path)))
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            key = path.name.removesuffix(_PARTIAL)
            abandoned = path.name.endswith(_PARTIAL) or (key.startswith("once-") and key != keep)
            if key == keep or not (abandoned or total > self._limit):
                continue
            try:
                with self._lock(key).acquire(timeout=0):  # one that is being made or opened stays
                    shutil.rmtree(path, ignore_errors=True)
                    if not abandoned:
                        self._removed(path, "over data.cache_gb, and used longest ago")
                    if key.startswith("once-"):  # nobody asks for this key again
                        self._lock_file(key).unlink(missing_ok=True)
            except Timeout:
                continue
            total -= size

    def _entries(self) -> Iterator[Path]:
        return (path for path in self._folder.iterdir() if path.is_dir() and path.name != "locks")


def _about(folder: Path) -> tuple[float, int] | None:
    """When it was last used, and its bytes. None where another process has just moved or removed it."""
    try:
        return folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:
        return None
