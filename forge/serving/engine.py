"""One thread that owns a model and serves requests, several at once where the architecture allows it.

MLX arrays that are still lazy, and MLX's random state, belong to the thread that made them, while a server calls from a pool
of threads; fast tokenizers are no safer. So everything that touches either runs in this thread, and callers get tickets.
"""

import time
import weakref
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

from forge.errors import ServingError
from forge.serving import thread
from forge.serving.contract import Completion, Piece, Sampling, Stats, Token
from forge.serving.faults import ModelFailed, ShuttingDown
from forge.serving.line import Line, Listener, Request, detached
from forge.serving.loading import load
from forge.serving.parts import Format
from forge.serving.prompt import Prompt
from forge.serving.service import Service

__all__ = ["Completion", "GenerationThread", "Listener", "Piece", "Sampling", "Stats", "Ticket", "Token"]

_ADAPTER = ("adapter_config.json", "adapters.safetensors")
_CLOSED = "this model has been closed: load it again"
_BROKEN = "this model has stopped by a bug, which the log tells: load it again"
_Ready = tuple[int, int | None, bool, Format]


class Ticket:
    """A request on its way. All methods may be called from any thread."""

    def __init__(self, request: Request):
        self._request = request

    def result(self) -> Completion:
        """Waits for the answer. Raises what befell the request."""
        return self._request.future.result()

    def cancel(self) -> None:
        """Has the request leave before the next token; result then raises Cancelled. Does nothing to one that is done."""
        self._request.cancelled = True

    def done(self) -> bool:
        return self._request.future.done()


class GenerationThread:
    """Serves the model folder `folder`. Returns when the model is loaded; raises ServingError where there is none.

    slots     requests that are computed together; the others wait
    cache_gb  memory, in 10⁹ bytes, for the beginnings of prompts that come again; 0: none
    adapter   a folder with adapters.safetensors and adapter_config.json in mlx-lm's form, put over the model

    .slots is 1 where the architecture computes no requests together; .context is in tokens, None where the model names no limit; .format is
    what it marks its thoughts and calls with; .failed says that a bug has ended the thread, and only another one can serve the model. All
    methods may be called from any thread. The model is freed when this object is closed or no longer referenced.
    """

    def __init__(self, folder: Path | str, *, slots: int = 8, cache_gb: float = 1.0, adapter: Path | None = None):
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():  # mlx_lm would look for the name on the Hub
            raise ServingError(f"no model in {self.folder}: config.json is missing, pass a folder in the Hugging Face layout")
        if adapter is not None and (missing := [name for name in _ADAPTER if not Path(adapter, name).is_file()]):
            raise ServingError(f"no adapter in {adapter}: {' and '.join(missing)} missing, pass one that training wrote")
        self._line = Line()
        ready: Future[_Ready] = Future()
        run = partial(_run, self.folder, adapter, slots, cache_gb, self._line, ready)
        self._ended = thread.start(run, self._line.halt)
        try:
            self.slots, self.context, self.tokenizer_has_template, self.format = ready.result()
        except BaseException:  # also Ctrl-C, where the model would else be kept for nobody
            self._line.halt()
            raise
        self._close = weakref.finalize(self, self._line.inbox.put, None)
        self._close.atexit = False

    def submit(
        self, prompt: Prompt | list[int], sampling: Sampling, timeout_s: float | None = None, listener: Listener | None = None
    ) -> Ticket:
        """Queue a request. Raises ShuttingDown where the model has been closed, ModelFailed where a bug has ended the thread.

        The ticket's result raises PromptTooLong, TimedOut when `timeout_s` from now have passed, or another ServingError.
        `listener` is called in the generation thread, where it must not block: with each Piece, then once with the Completion or the
        exception. What it raises ends this request alone.
        """
        if not self._close.alive:
            raise ShuttingDown(_CLOSED)
        request = Request(prompt, sampling, None if timeout_s is None else time.monotonic() + timeout_s, listener)
        self._line.put(request)
        return Ticket(request)

    @property
    def failed(self) -> bool:
        return isinstance(self._line.closed, ModelFailed)

    def stats(self) -> Stats:
        """As of the last token."""
        stats = self._line.stats
        return replace(stats, queued=stats.queued + self._line.inbox.qsize())

    def close(self) -> None:
        """Free the model after the requests that are queued now."""
        self._close()


def _run(folder: Path, adapter: Path | None, slots: int, cache_gb: float, line: Line, ready: "Future[_Ready]") -> None:
    why: ServingError = ModelFailed(_BROKEN)
    try:
        _serve(folder, adapter, slots, cache_gb, line, ready)
        why = ShuttingDown(_CLOSED)
    finally:
        line.end(why)


def _serve(folder: Path, adapter: Path | None, slots: int, cache_gb: float, line: Line, ready: "Future[_Ready]") -> None:
    try:
        loaded = load(folder, adapter)
        service = Service(loaded, line, slots, cache_gb)
        found = (service.slots, loaded.context, bool(loaded.tokenizer.has_chat_template), Format.of(loaded.tokenizer))
    except Exception as error:  # handed to the thread that waits for it
        ready.set_exception(detached(error))
        return
    ready.set_result(found)
    del loaded
    service.run()
