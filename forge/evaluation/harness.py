"""EleutherAI's lm-evaluation-harness on a model in memory, by its Python API (the extra lm-eval).

Tasks of one's own lie in evaluation.harness.include_path; with `data_files` beside them and HF_DATASETS_OFFLINE=1 nothing takes the
network. Rows are scored some 8,192 positions at a time, and logits are made only where a continuation stands. Generation is greedy.
Each model's scores are those of one process; tasks that run what a model wrote, or that sample, are refused.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from forge import bars
from forge.errors import ConfigError
from forge.evaluation.answers import generate
from forge.models import Loaded
from forge.progress import Work
from forge.settings import HarnessSpec
from forge.training.ends import hidden_states
from forge.training.evaluate import evaluating

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
    from lm_eval.tasks import TaskManager  # type: ignore[import-untyped]

Request = tuple[Sequence[int], Sequence[int]]  # context, and the continuation that is scored
Tell = Callable[[str, float], None]  # how far it is: in words, and as a share

_POSITIONS, _ROWS, _CHUNK = 2**13, 32, 256
_WORK = "lm-evaluation-harness"
_BARS: dict[str, bars.Names] = {"lm_eval.api.task": {"": "prompt"}, "lm_eval.api.model": {"Tokenizing inputs": "tokenising prompt"}}
_CONTEXT = 4096  # where the model says none
_MAX_NEW = 256  # where the task says none, as in the harness's own models


def require(spec: HarnessSpec) -> None:
    """Raises ConfigError where tasks that are named, or their rows, can't be had. Reads the rows, over the network where they lie there."""
    if not spec.tasks:
        return
    manager = _tasks(spec)
    for task in spec.tasks:
        try:
            with Work(_WORK) as work, _no_bars():
                work.at(f"reading {task}")
                manager.load([task])
        except (OSError, ValueError) as error:  # what datasets raises for rows that are not there or not reachable
            why = str(error).strip().partition("\n")[0]
            raise ConfigError(
                f"evaluation.harness.tasks: the rows of {task} can't be had ({why}); is the network there, or in the cache what it takes?"
            ) from error


def harness(loaded: Loaded, spec: HarnessSpec) -> dict[str, float]:
    """harness/<task>/<metric> of each task and group; empty where no task is named. Raises ConfigError."""
    if not spec.tasks:
        return {}
    from lm_eval import simple_evaluate  # type: ignore[import-untyped]

    manager = _tasks(spec)
    with Work(_WORK) as work, bars.told(work, _BARS), _no_bars(), _as_before(), evaluating(loaded.model):
        found = simple_evaluate(
            model=adapted(loaded, work.at),
            tasks=list(spec.tasks),
            task_manager=manager,
            num_fewshot=spec.fewshot,
            limit=spec.limit,
            apply_chat_template=spec.chat,
            bootstrap_iters=0,  # it would fork
            log_samples=False,
        )
    return {
        f"harness/{task}/{_plain(name)}": float(value)
        for task, scores in found["results"].items()
        for name, value in scores.items()
        if isinstance(value, int | float) and "," in name
    }


def _untold(words: str, share: float) -> None:
    """To nobody."""


def scores(loaded: Loaded, requests: Sequence[Request], tell: Tell = _untold) -> list[tuple[float, bool]]:
    """Of each continuation its summed log-probability (nats) after its context, of a token or more, and whether it is the likeliest."""
    order = sorted(range(len(requests)), key=lambda n: len(requests[n][0]) + len(requests[n][1]))
    found: dict[int, tuple[float, bool]] = {}
    at = 0
    while at < len(order):
        tell(f"scored {at:,} of {len(order):,} continuations", at / len(order))
        size = 1
        while size < _ROWS and at + size < len(order) and (size + 1) * sum(map(len, requests[order[at + size]])) <= _POSITIONS:
            size += 1
        chosen = order[at : at + size]
        found |= dict(zip(chosen, _scored(loaded, [requests[n] for n in chosen]), strict=True))
        at += size
    return [found[n] for n in range(len(requests))]


def _scored(loaded: Loaded, requests: Sequence[Request]) -> Iterator[tuple[float, bool]]:
    width = max(len(context) + len(continuation) for context, continuation in requests)
    tokens_BT = np.zeros((len(requests), width), dtype=np.int32)
    row_N: list[int] = []
    position_N: list[int] = []
    for row, (context, continuation) in enumerate(requests):
        end = len(context) + len(continuation)
        tokens_BT[row, :end] = [*context, *continuation]
        row_N += [row] * len(continuation)
        position_N += range(len(context) - 1, end - 1)  # what a token is predicted from
    hidden_BTD, head = hidden_states(loaded.model, mx.array(tokens_BT[:, :-1]), None)
    hidden_ND = hidden_BTD[mx.array(row_N, dtype=mx.int32), mx.array(position_N, dtype=mx.int32)]
    targets_N = mx.array([token for _, continuation in requests for token in continuation], dtype=mx.int32)
    sums, greedy = np.zeros(len(requests)), np.ones(len(requests), dtype=bool)
    for start in range(0, len(row_N), _CHUNK):
        part = slice(start, start + _CHUNK)
        logits_NV = head(hidden_ND[part]).astype(mx.float32)
        of_targets_N = mx.take_along_axis(logits_NV, targets_N[part, None], axis=1)[:, 0] - mx.logsumexp(logits_NV, axis=1)
        np.add.at(sums, row_N[part], np.array(of_targets_N, dtype=np.float64))
        np.logical_and.at(greedy, row_N[part], np.array(mx.argmax(logits_NV, axis=1) == targets_N[part]))
    yield from zip(sums.tolist(), greedy.tolist(), strict=True)


def adapted(loaded: Loaded, tell: Tell = _untold) -> "TemplateLM":
    """The model as the harness asks it. Contexts that are too long lose their beginning."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs  # type: ignore[import-untyped]
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # type: ignore[import-untyped]

    tokenizer = loaded.tokenizer
    longest = {**loaded.config, **loaded.config.get("text_config", {})}.get("max_position_embeddings") or _CONTEXT

    class Adapted(TemplateLM):
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        tokenizer_name = loaded.lineage.uri.replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            start = tokenizer.bos_token
            written = start is not None and string.startswith(start)
            special = not written if add_special_tokens is None else add_special_tokens
            return list(tokenizer.encode(string, add_special_tokens=special))

        def chat_template(self, chat_template: bool | str = False) -> str:
            return str(tokenizer.chat_template or "")

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return str(
                tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return scores(loaded, [_within(list(context), list(continuation), longest) for _, context, continuation in requests], tell)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            windows = [
                [*map(make_disjoint_window, get_rolling_token_windows(self.tok_encode(each.args[0]), self.prefix_token_id, longest, 1))]
                for each in requests
            ]
            made = iter(scores(loaded, [window for some in windows for window in some], tell))
            return [sum(next(made)[0] for _ in some) for some in windows]

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked = [normalize_gen_kwargs(each.args[1], _MAX_NEW) for each in requests]
            if any(each.get("temperature") for each in asked):
                raise ConfigError("evaluation.harness: a task samples (temperature above 0), and answers here are greedy; leave it out")
            most = [min(each["max_gen_toks"], longest // 2) for each in asked]
            stops = [[stop for stop in each["until"] if stop] for each in asked]
            prompts = [
                (self.tok_encode(each.args[0]) or [self.prefix_token_id])[-(longest - limit) :]
                for each, limit in zip(requests, most, strict=True)
            ]
            begun: set[int] = set()

            def enough(n: int, tokens: Sequence[int]) -> bool:
                if n not in begun:
                    begun.add(n)
                    tell(f"answer {len(begun):,} of {len(prompts):,}", (len(begun) - 1) / len(prompts))
                return any(stop in tokenizer.decode(list(tokens)) for stop in stops[n])

            written = generate(loaded.model, tokenizer, prompts, most, enough)
            return [_cut(tokenizer.decode(list(tokens)), stop) for (tokens, _), stop in zip(written, stops, strict=True)]

    return Adapted()


def _within(context: list[int], continuation: list[int], longest: int) -> Request:
    """The last `longest` inputs, of which at least one is context; the last token is never an input."""
    whole = (context + continuation)[-(longest + 1) :]
    border = len(whole) - min(len(continuation), len(whole) - 1)
    return whole[:border], whole[border:]


def _cut(text: str, stops: Sequence[str]) -> str:
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def _tasks(spec: HarnessSpec) -> "TaskManager":
    """Raises ConfigError for a task that isn't known, or whose rows can't be had."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"evaluation.harness.tasks needs {error.name}: pip install 'forge-mlx[lm-eval]'") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of each default that it takes
    if spec.include_path is not None and not Path(spec.include_path).is_dir():
        raise ConfigError(f"evaluation.harness.include_path={spec.include_path}: there is no such folder")
    manager = TaskManager(include_path=spec.include_path, include_defaults=False) if spec.include_path else None
    if manager is None or any(task not in manager.all_tasks for task in spec.tasks):
        manager = TaskManager(include_path=spec.include_path)
    if missing := [task for task in spec.tasks if task not in manager.all_tasks]:
        raise ConfigError(f"evaluation.harness.tasks: lm-evaluation-harness has no {missing[0]!r}; see evaluation.harness.include_path")
    return manager


def _plain(name: str) -> str:
    """ "acc,none" -> "acc"; other filters keep their name, as in "exact_match.strict-match"."""
    metric, _, kind = name.partition(",")
    return metric if kind == "none" else f"{metric}.{kind}"


@contextmanager
def _no_bars() -> Iterator[None]:
    """`datasets` draws its own where it makes rows of files."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextmanager
def _as_before() -> Iterator[None]:
    """The harness seeds everything it finds, and asks git about the current folder, which says so where there is none."""
    ours, numpys = random.getstate(), np.random.get_state()
    try:
        with patch("lm_eval.evaluator.get_git_commit_hash", return_value=None, create=True):
            yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
