"""Generates with the served model's thread: eight requests at once against one after the other, and one against mlx-lm's own generation.

Random Qwen 3 weights, as in scripts/benches/train.py, greedy, the same prompts. All contenders are in one process, on the same BLAS, and
take turns within each round; a ratio is one of the same round, and what is printed are medians. Tokens of a second are generated ones, and
the second includes reading the prompts. Takes some minutes on two cores.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from train_setup import SIZES, make_folder, make_rows

import forge
from forge.serving.engine import GenerationThread, Sampling

_AT_ONCE_BAR, _ALONE_BAR = 2.0, 0.9

Speed = dict[str, float]  # tokens a second of each contender in a round


def main() -> None:
    asked = _arguments()
    print(f"{platform.platform()}, {os.cpu_count()} cores, {forge.blas.describe()}; {asked.rounds} rounds")
    with tempfile.TemporaryDirectory(prefix="forge-bench-") as place:
        for name in asked.sizes.split(","):
            folder = Path(place, name)
            make_folder(SIZES[name], folder)
            prompts = make_rows(SIZES[name], 1, asked.requests, asked.prompt)[0][:, : asked.prompt]
            _table(name, asked, _rounds(folder, prompts, asked))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="8M,50M", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens")
    parser.add_argument("--tokens", type=int, default=128, help="generated for each request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of a few tokens of the smallest size")
    asked = parser.parse_args()
    if asked.quick:
        asked.sizes, asked.tokens, asked.rounds = "8M", 24, 2
    if unknown := set(asked.sizes.split(",")) - set(SIZES):
        parser.error(f"{', '.join(sorted(unknown))}: sizes are {', '.join(SIZES)}")
    return asked


def _rounds(folder: Path, prompts: np.ndarray, asked: Any) -> list[Speed]:
    """The first, which warms up, is left out. The thread keeps no prefixes: each prompt would be read once and never again."""
    import mlx_lm

    thread = GenerationThread(folder, slots=asked.requests, cache_gb=0)
    model, tokenizer = mlx_lm.load(str(folder))
    sampling = Sampling(max_tokens=asked.tokens, temperature=0)
    each: list[list[int]] = prompts.tolist()

    def at_once() -> int:
        tickets = [thread.submit(prompt, sampling) for prompt in each]
        return sum(ticket.result().completion_tokens for ticket in tickets)

    def in_turn() -> int:
        return sum(thread.submit(prompt, sampling).result().completion_tokens for prompt in each)

    def alone() -> int:
        return thread.submit(each[0], sampling).result().completion_tokens

    def mlx_lms() -> int:
        return sum(1 for _ in mlx_lm.stream_generate(model, tokenizer, each[0], max_tokens=asked.tokens))

    contenders = {"at once": at_once, "one by one": in_turn, "one": alone, "mlx_lm.stream_generate": mlx_lms}
    rounds = [{name: _speed(call) for name, call in contenders.items()} for _ in range(asked.rounds + 1)]
    thread.close()
    return rounds[1:]


def _speed(call: Callable[[], int]) -> float:
    start = time.perf_counter()
    tokens = call()
    return tokens / (time.perf_counter() - start)


def _table(name: str, asked: Any, rounds: list[Speed]) -> None:
    print(f"\n{name} ({SIZES[name].weights / 1e6:.1f} M weights), {asked.requests} requests of {asked.prompt} + {asked.tokens} tokens")
    for contender in rounds[0]:
        speeds = [each[contender] for each in rounds]
        print(f"{contender:26}{statistics.median(speeds):10,.0f} tokens/s  {', '.join(f'{speed:,.0f}' for speed in speeds)}")
    _ratio("at once over one by one", [each["at once"] / each["one by one"] for each in rounds], _AT_ONCE_BAR)
    _ratio("one over mlx_lm.stream_generate", [each["one"] / each["mlx_lm.stream_generate"] for each in rounds], _ALONE_BAR)


def _ratio(what: str, ratios: list[float], bar: float) -> None:
    median = statistics.median(ratios)
    verdict = "met" if median >= bar else "NOT MET"
    print(f"{what}: {median:.2f} (bar {bar}, {verdict}); {', '.join(f'{each:.2f}' for each in ratios)}", flush=True)


if __name__ == "__main__":
    main()
