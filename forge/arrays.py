"""Typed ways round what MLX's stubs leave open."""

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def flat(tree: Any) -> dict[str, mx.array]:
    """The arrays of a parameter tree by dotted name."""
    return dict(cast(list[tuple[str, mx.array]], tree_flatten(tree)))


def size(tree: Any) -> int:
    """Bytes of the arrays of a tree."""
    return sum(array.nbytes for array in flat(tree).values())


def scalar(array: mx.array) -> float:
    return cast(float, array.item())


def load(path: Path) -> dict[str, mx.array]:
    return dict(cast(Mapping[str, mx.array], mx.load(str(path))))


def save(path: Path, arrays: Mapping[str, mx.array]) -> None:
    """The same arrays make the same file. Raises OSError where it can't be written, for which mlx has a RuntimeError, as for much else."""
    try:
        mx.save_safetensors(str(path), dict(sorted(arrays.items())))
    except RuntimeError as error:
        if "Unable to write" in str(error) or "Failed to open" in str(error):
            raise OSError(errno.EIO, str(error)) from error
        raise
