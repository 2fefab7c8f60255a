"""Where things lie: one root, whatever the current folder is.

The root is FORGE_HOME when set; the checkout when forge runs from one (editable install); else the current folder.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forge.errors import ConfigError

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_HALF = re.compile(r"[\ud800-\udfff]")  # a surrogate, which no name on disk can hold
_LONGEST = 255  # bytes of a file's name, on the file systems of Linux and macOS

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
    """Raises ConfigError where that is no name of a folder below them."""
    return within(runs() / "checkpoints", run_id)


def cache() -> Path:
    return runs() / "cache"


def locks() -> Path:
    return cache() / "locks"


def given(what: str, text: str) -> Path:
    """The path that a user wrote for the setting `what`, with ~ for their home. Raises ConfigError for one that there can't be."""
    try:
        path = Path(text).expanduser()
        os.fsencode(path), path.is_dir()  # names that no disk holds raise here
    except RuntimeError as error:
        raise ConfigError(f"{what}={_shown(text)}: there is no such user; write the path in full") from error
    except (OSError, UnicodeEncodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds half a character"
        raise ConfigError(f"{what}={_shown(text)}: can't be looked for ({why}); write another path") from error
    if _CONTROL.search(text):
        raise ConfigError(f"{what}={_shown(text)}: a path holds no control characters; write it as it is")
    return path


def within(root: Path, name: str) -> Path:
    """root / name, for a name that came from outside: a user's, a tag's, a file's.

    Several folders deep is fine. `root` itself may be a link; what lies below it may not lead out.
    Raises ConfigError, before anything is touched, for a name that would: absolute, with `..` or `\\`, through a link; and for one that no
    file can have.
    """
    if why := _refused(name):
        raise ConfigError(f"{_shown(name)}: {why}; nothing outside {root} is touched, so take another name")
    path = root / name
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError) as error:  # links in a ring
        raise ConfigError(f"{path}: can't be followed ({error})") from error
    if not inside:
        raise ConfigError(f"{path} is a link that leads out of {root}; put the folder itself there, or make {root} the link")
    return path


def _refused(name: str) -> str:
    """Why a name is none, in words."""
    parts = name.split("/")
    if name.startswith(("/", "~")) or (name[1:2] == ":" and name[:1].isalpha()):
        return "an absolute path is no name"
    if "\\" in name or _CONTROL.search(name) or _HALF.search(name):
        return "a name holds no backslash, no control character and no half of one"
    if any(part in ("", ".", "..") for part in parts):
        return "a name has no empty part, `.` or `..`"
    if any(len(part.encode("utf-8", "replace")) > _LONGEST for part in parts):
        return f"a name is at most {_LONGEST} bytes long"
    return ""


def _shown(name: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in name[:80]) + "…" * (len(name) > 80)


def remove(root: Path, path: Path) -> bool:
    """Take `path`, a file or a folder below `root`, away; whether it was there. Of a link the link goes, never what it points to.

    Raises ConfigError where it lies elsewhere, also by way of a link, and OSError where it can't be removed.
    """
    if not path.is_relative_to(root) or path == root:
        raise ConfigError(f"{_shown(str(path))}: lies not below {root}, so it is not removed")
    *parents, name = path.relative_to(root).parts
    if why := _refused(name):
        raise ConfigError(f"{_shown(str(path))}: {why}; nothing outside {root} is touched")
    place = (within(root, "/".join(parents)) if parents else root) / name
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    else:
        return False
    return True


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """`folder`, empty, and removed afterwards. A link in its place goes, and what it points to stays."""
    _clear(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        _clear(folder)


def _clear(folder: Path) -> None:
    with suppress(OSError):
        remove(folder.parent, folder)


def flush(path: Path) -> None:
    """Have the system write a file, or what a folder lists, to disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
