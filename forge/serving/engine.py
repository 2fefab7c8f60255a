"""One thread that owns a model: it loads the weights, then serves a queue of requests one after the other.

MLX arrays that are still lazy, and MLX's random state, belong to the thread that made them, while a server calls from a pool
of threads; fast tokenizers are no safer. So everything that touches either runs in this thread, and callers get futures.

The thread never ends, it parks, and a process that exits lets it park first: one that exits while an MLX thread ends, or computes,
aborts with "terminate called without an active exception".
"""

import atexit
import json
import queue
import secrets
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

# forge/__init__.py has run by now and put the fast BLAS in place, which has to be before mlx is first imported.
import mlx.core as mx
import mlx_lm
from mlx_lm.sample_utils import make_logits_processors, make_sampler

from forge.errors import ServingError
from forge.serving.decode import Text
from forge.serving.prompt import Prompt, encode

_Reason = Literal["stop", "length"]

# How long an exiting process waits for a step of the model.
_LAST_STEP_S = 30

# Below this, logits / temperature may overflow; the largest logit wins anyway.
_GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class Sampling:
    """How to continue. The one place of the defaults.

    max_tokens          at most so many new tokens, the end token included; fewer where the context ends.
    temperature         0: always the likeliest token.
    top_p, top_k, min_p 1, 0 and 0: no restriction.
    repetition_penalty  over the last 20 tokens; 1: none.
    seed                equal seeds give equal texts on one machine; None: another text each time.
    stop                the text ends before the first of these.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """`completion_tokens`: those the model generated, an end token and those of a stop string included.

    `finish_reason`: "stop" at the end token or a stop string, "length" where max_tokens or the context ended it.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: _Reason


@dataclass(frozen=True)
class _Job:
    prompt: Prompt
    sampling: Sampling
    deadline: float | None  # on time.monotonic's clock
    future: "Future[Completion]"


@dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    context: int | None  # tokens, prompt and completion together


@dataclass(frozen=True)
class _Line:
    """What the thread and its owner share. A None in the inbox ends the service after what is queued before it."""

    inbox: "queue.SimpleQueue[_Job | None]" = field(default_factory=queue.SimpleQueue)
    ready: "Future[int | None]" = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)
    parked: threading.Event = field(default_factory=threading.Event)

    def halt(self) -> None:
        """End the service after the next token."""
        self.stop.set()
        self.inbox.put(None)
        self.parked.wait(_LAST_STEP_S)


class GenerationThread:
    """Serves the model folder `folder`. Returns when the model is loaded; raises ServingError where there is none.

    All methods may be called from any thread. The model is freed when this object is closed or no longer referenced.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():  # mlx_lm would look for the name on the Hub
            raise ServingError(f"no model in {self.folder}: config.json is missing, pass a folder in the Hugging Face layout")
        self._line = _Line()
        threading.Thread(target=_run, args=(self.folder, self._line), name="forge-generation", daemon=True).start()
        atexit.register(self._line.halt)
        self.context = self._line.ready.result()
        self._close = weakref.finalize(self, self._line.inbox.put, None)
        self._close.atexit = False

    def submit(self, prompt: Prompt, sampling: Sampling, timeout_s: float | None = None) -> "Future[Completion]":
        """Queue a request. The future raises ServingError for a prompt that doesn't fit, and when `timeout_s` from now have passed."""
        if not self._close.alive:
            raise ServingError("this model has been closed: load it again")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        future: Future[Completion] = Future()
        self._line.inbox.put(_Job(prompt, sampling, deadline, future))
        return future

    def close(self) -> None:
        """Free the model after the requests that are queued now."""
        self._close()


def _run(folder: Path, line: _Line) -> None:
    _serve(folder, line)
    mx.clear_cache()
    line.parked.set()
    threading.Event().wait()


def _serve(folder: Path, line: _Line) -> None:
    try:
        loaded = _load(folder)
    except Exception as error:  # handed to the thread that waits for it
        line.ready.set_exception(error)
        return
    line.ready.set_result(loaded.context)
    while (job := line.inbox.get()) is not None:
        if not job.future.set_running_or_notify_cancel():
            continue
        try:
            job.future.set_result(_complete(loaded, job, line.stop))
        except Exception as error:  # handed to the thread that waits for it
            job.future.set_exception(error)
        del job  # or the last answer would stay in memory until the next request


def _load(folder: Path) -> _Loaded:
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return _Loaded(model, tokenizer, context)


def _complete(loaded: _Loaded, job: _Job, stop: threading.Event) -> Completion:
    _check_time(job, stop)
    sampling, tokenizer = job.sampling, loaded.tokenizer
    ids = encode(tokenizer, job.prompt)
    mx.random.seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
    text = Text(tokenizer, ids)
    stream = mlx_lm.stream_generate(
        loaded.model,
        tokenizer,
        ids,
        max_tokens=min(sampling.max_tokens, _room(len(ids), loaded.context)),
        sampler=_sampler(sampling, len(tokenizer)),
        logits_processors=_processors(sampling),
    )
    with closing(stream):  # in this thread, whatever happens: it holds an MLX stream
        for response in stream:
            _check_time(job, stop)
            if response.finish_reason != "stop":  # else the token is the end token, which is not text
                text.add(response.token)
            if response.finish_reason is not None:
                text.finish()
            if (cut := text.find(sampling.stop)) is not None:
                return Completion(text.text[:cut], len(ids), response.generation_tokens, "stop")
    return Completion(text.text, len(ids), response.generation_tokens, cast(_Reason, response.finish_reason))


def _room(prompt_tokens: int, context: int | None) -> int:
    """How many tokens may follow the prompt."""
    if context is None:
        return 2**31
    if prompt_tokens >= context:
        raise ServingError(
            f"the prompt has {prompt_tokens} tokens, but the model's context holds {context}, prompt and completion together: "
            "shorten the prompt"
        )
    return context - prompt_tokens


def _sampler(sampling: Sampling, vocabulary: int) -> Any:
    greedy = sampling.temperature < _GREEDY_BELOW
    return make_sampler(
        temp=0.0 if greedy else sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        top_k=sampling.top_k if sampling.top_k < vocabulary else 0,  # mlx_lm raises for a k that restricts nothing
    )


def _processors(sampling: Sampling) -> Any:
    return make_logits_processors(repetition_penalty=None if sampling.repetition_penalty == 1 else sampling.repetition_penalty)


def _check_time(job: _Job, stop: threading.Event) -> None:
    if stop.is_set():
        raise ServingError("not finished: the server is being shut down")
    if job.deadline is not None and time.monotonic() > job.deadline:
        raise ServingError("not finished within the server's time limit: lower `max_tokens`, or serve with a longer --timeout")
