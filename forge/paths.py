"""Where things lie: one root, whatever the current folder is.

The root is FORGE_HOME when set; the checkout when forge runs from one (editable install); else the current folder.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from forge.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def in_checkout() -> bool:
    return (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "conf" / "config.yaml").is_file()


def root() -> Path:
    home = os.environ.get("FORGE_HOME")
    if home:
        folder = Path(home).expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"FORGE_HOME={home}: that is no folder")
        return folder
    return code()


def code() -> Path:
    """Where git is asked for the state of the code: the checkout, else the current folder (a project that uses forge)."""
    return _CHECKOUT if in_checkout() else Path.cwd()


def conf() -> Path:
    """The repository's conf/, else the copy in the installed package."""
    return _CHECKOUT / "conf" if in_checkout() else _PACKAGE / "conf"


def runs() -> Path:
    return root() / "mlruns"


def require_writable() -> None:
    """Raises ConfigError where nothing can be kept."""
    try:
        runs().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=runs()):
            pass
    except OSError as error:
        raise ConfigError(f"{runs()}: can't be written ({error.strerror}); mend that, or set FORGE_HOME to another place") from error


def checkpoints(run_id: str) -> Path:
    return runs() / "checkpoints" / run_id


def cache() -> Path:
    return runs() / "cache"


def locks() -> Path:
    return cache() / "locks"


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """`folder`, empty, and removed afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the system write a file, or what a folder lists, to disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
