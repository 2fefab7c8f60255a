"""Trains the same model on the same tokens with forge, stock mlx-lm and torch, in turns, each in a process of its own.

Random Qwen 3 weights, full rows, AdamW on every weight or LoRA on every linear layer, the same learning rate. Speed is the median over
the steps past the first three, then over the rounds. A contender's loss after the last step says that it did the same work. mlx-lm as
installed runs once, on one row a step for two steps: where that means MLX's reference BLAS, a whole batch takes minutes. Losses of LoRA
differ in the second digit: torch draws other first factors. All of it takes a quarter of an hour on two cores.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import train_harness
from train_setup import SIZES, Size, flops, make_folder, make_rows

import forge

_HERE = Path(__file__).resolve().parent
_COLD = 3  # steps
_OTHER_KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # have OpenBLAS take those of another processor than this one
_BASE_CONTEXT = 512


class Contender(NamedTuple):
    name: str
    program: str
    dtype: str = "float32"
    preload: str = ""
    brief: bool = False


class Work(NamedTuple):
    """What a table is about."""

    name: str
    size: Size
    mode: str
    context: int
    rows: int


def main() -> None:
    asked = _arguments()
    if asked.harness:
        return train_harness.main(quick=asked.quick)
    if ignored := [name for name in _OTHER_KERNELS if os.environ.pop(name, None)]:
        print(f"taken out of the environment, for forge and mlx-lm alike: {', '.join(ignored)}")
    contenders = [each for each in _contenders(asked.torch_python) if not asked.only or asked.only in each.name]
    print(f"{platform.platform()}, {os.cpu_count()} cores; {asked.rounds} rounds of {asked.steps} steps, the first {_COLD} left out")
    medians: dict[tuple[str, str, int], dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as place:
        for work in _works(asked):
            folder = Path(place, work.name)
            if not folder.exists():
                make_folder(work.size, folder)
            results = _in_turns(work, contenders, asked, folder, Path(place))
            medians[work.name, work.mode, work.context] = _table(work, results)
    _against_flops(medians)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8M,50M", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--modes", default="full,lora")
    parser.add_argument("--context", default="512,4096", help="tokens a row; past the first, for the first size and mode only")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="", help="contenders with this in their name")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python with torch, transformers and peft, if not this one")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest size")
    parser.add_argument("--harness", action="store_true", help="what a run costs besides its steps and evaluations, and nothing else")
    asked = parser.parse_args()
    if asked.quick:
        asked.sizes, asked.modes, asked.rounds, asked.steps = "8M", "full", 1, _COLD + 2
    if unknown := set(asked.sizes.split(",")) - set(SIZES) | set(asked.modes.split(",")) - {"full", "lora"}:
        parser.error(f"{', '.join(sorted(unknown))}: sizes are {', '.join(SIZES)}, modes full and lora")
    if asked.steps <= _COLD:
        parser.error(f"--steps {asked.steps}: the first {_COLD} are left out, so take more")
    return asked


def _contenders(torch_python: str) -> list[Contender]:
    """On a GPU everything in bf16 too; on a CPU only torch has fast bf16 products."""
    import mlx.core as mx

    gpu = mx.default_device() != mx.Device(mx.cpu)
    blas = forge.blas.describe()
    found = [Contender("forge fp32", "train_forge")]
    if gpu:
        found += [Contender("forge bf16", "train_forge", "bfloat16"), Contender("mlx-lm fp32", "train_mlx_lm")]
        found.append(Contender("mlx-lm bf16", "train_mlx_lm", "bfloat16"))
    elif blas.startswith("lib"):
        found += [
            Contender(f"mlx-lm + {blas}", "train_mlx_lm", preload=_library(blas)),
            Contender("mlx-lm (1 row)", "train_mlx_lm", brief=True),
        ]
    else:
        found.append(Contender("mlx-lm", "train_mlx_lm"))
    if subprocess.run([torch_python, "-c", "import torch, transformers, peft"], capture_output=True).returncode:
        print(
            'no torch, transformers and peft here, so no comparison with them: pip install -e ".[bench]", or name a Python that has them '
            "with --torch-python"
        )
        return found
    return [*found, Contender("torch fp32", "train_torch"), Contender("torch bf16", "train_torch", "bfloat16")]


def _library(name: str) -> str:
    own = Path(sys.prefix, "lib", name)  # mkl's wheel; else the linker finds it
    return str(own) if own.exists() else name


def _works(asked: argparse.Namespace) -> list[Work]:
    """The context of each further one with as many tokens a step as the first."""
    sizes, modes, (context, *more) = asked.sizes.split(","), asked.modes.split(","), map(int, asked.context.split(","))

    def work(name: str, mode: str, length: int) -> Work:
        return Work(name, SIZES[name], mode, length, max(1, SIZES[name].rows * _BASE_CONTEXT // length))

    return [work(name, mode, context) for name in sizes for mode in modes] + [work(sizes[0], modes[0], length) for length in more]


def _in_turns(work: Work, contenders: list[Contender], asked: Any, folder: Path, place: Path) -> dict[str, list[dict[str, Any]]]:
    results: dict[str, list[dict[str, Any]]] = {}
    for round_number in range(asked.rounds):
        for contender in contenders:
            if contender.brief and (round_number or work.context != _BASE_CONTEXT):
                continue
            if result := _run(contender, work, asked, folder, place):
                results.setdefault(contender.name, []).append(result)
    return results


def _run(contender: Contender, work: Work, asked: Any, folder: Path, place: Path) -> dict[str, Any] | None:
    """None, after a word about it, where it fails: the others are of use still."""
    rows, settings, result = place / "rows.npy", place / "settings.json", place / "result.json"
    result.unlink(missing_ok=True)
    shape = (2, 1) if contender.brief else (asked.steps, work.rows)
    np.save(rows, make_rows(work.size, *shape, work.context))
    chosen = {"folder": str(folder), "rows": str(rows), "result": str(result), "mode": work.mode, "dtype": contender.dtype}
    settings.write_text(json.dumps(chosen))
    python = asked.torch_python if contender.program == "train_torch" else sys.executable
    own = {"LD_PRELOAD": contender.preload} if contender.preload else {}
    own |= {"PYTHONPATH": str(_HERE.parents[1])} if contender.program == "train_forge" else {}
    command = [python, str(_HERE / f"{contender.program}.py"), str(settings)]
    ended = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    if not result.is_file():
        print(f"{contender.name} failed:\n{ended.stderr[-2000:]}", file=sys.stderr)
        return None
    found = {**json.loads(result.read_text()), "rows": shape[1], "cold": 1 if contender.brief else _COLD}
    print(f"  {contender.name}: {_speed(found, work):,.0f} tokens/s", file=sys.stderr)
    return found


def _speed(result: dict[str, Any], work: Work) -> float:
    """Median tokens a second past the cold steps."""
    return result["rows"] * work.context / statistics.median(result["seconds"][result["cold"] :])


def _table(work: Work, results: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Prints it; returns each one's median speed."""
    medians = {name: statistics.median(_speed(each, work) for each in found) for name, found in results.items()}
    about = {key: value for found in results.values() for key, value in reversed(found[0]["about"].items())}
    print(f"\n{work.name} ({work.size.weights / 1e6:.1f} M weights) {work.mode}, {work.rows} rows of {work.context}")
    print(f"{'':28}{'tokens/s':>10}{'forge is':>10}{'resident':>10}{'arrays':>10}{'loss':>9}  rounds")
    for name, found in results.items():
        ratio = f"{medians['forge fp32'] / medians[name]:.2f} x" if "forge fp32" in medians else ""
        peaks = [max(each[key] for each in found) / 1e9 for key in ("resident_peak", "device_peak")]
        loss = f"{found[0]['losses'][-1]:9.4f}" if found[0]["cold"] == _COLD else f"{'–':>9}"
        each = ", ".join(f"{_speed(one, work):,.0f}" for one in found)
        arrays = f"{peaks[1]:7.2f} GB" if peaks[1] else f"{'–':>10}"
        print(f"{name:28}{medians[name]:10,.0f}{ratio:>10}{peaks[0]:7.2f} GB{arrays}{loss}  {each}")
    print("; ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    return medians


def _against_flops(medians: dict[tuple[str, str, int], dict[str, float]]) -> None:
    """Time a token at a longer context against what counting operations makes of the time at the first."""
    for (name, mode, context), found in medians.items():
        first = next(length for each, way, length in medians if (each, way) == (name, mode))
        for contender in found if context != first else ():
            if contender not in medians[name, mode, first]:
                continue
            slower = medians[name, mode, first][contender] / found[contender]
            expected = flops(SIZES[name], mode, context) / flops(SIZES[name], mode, first)
            print(
                f"{name} {mode} {contender}: a token at {context} takes {slower:.2f} x its time at {first}; operations alone: "
                f"{expected:.2f} x; ratio {slower / expected:.2f}"
            )


if __name__ == "__main__":
    main()
