"""What a run needs to be told apart and repeated: code state, versions, machine. Secrets never pass."""

import getpass
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence

from forge import blas, paths

_PACKAGES = ("forge-mlx", "mlx", "mlx-lm", "mlflow", "hydra-core", "omegaconf", "transformers", "tokenizers", "numpy")
_ADDED = ("resume=", "tracking.parent_run=", "hydra.run.dir=", "callbacks.pruning=")  # to a sweep's child
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD", "PASSWD", "CREDENTIALS")


def tags() -> dict[str, str]:
    """Machine, versions and git state, as run tags."""
    commit = _git("rev-parse", "HEAD")
    found = {
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": shlex.join(["python", "-m", "forge.train", *_typed(sys.argv[1:])]),
        "forge.blas": blas.describe(),
        "forge.host": f"{platform.node()} ({platform.platform()})",
        "forge.versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
    if kernels := blas.kernels():
        found["forge.blas_kernels"] = kernels
    if commit:
        # MLflow shows this one as the run's source version.
        found |= {"mlflow.source.git.commit": commit, "forge.git_dirty": str(bool(_git("status", "--porcelain"))).lower()}
    return found


def _typed(words: Sequence[str]) -> list[str]:
    """The command line without what forge adds to it."""
    plain = [word.removeprefix("++") for word in words]
    return [word for word in plain if not word.startswith(_ADDED)]


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # forge from a source folder, say
    return found


def dirty_diff() -> str:
    """What the working tree changes against its commit; "" when clean or when there is no git."""
    return redact(_git("diff", "HEAD") or "")


def redact(text: str) -> str:
    """`text` with the value of every secret-looking environment variable replaced."""
    secrets = [(value, name) for name, value in os.environ.items() if len(value) >= 6 and name.upper().endswith(_SECRET)]
    for value, name in sorted(secrets, key=lambda secret: -len(secret[0])):  # one may begin with another
        text = text.replace(value, f"<{name}>")
    return text


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"  # a container's number without a name


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(paths.code()), *arguments], capture_output=True, encoding="utf-8", errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
