"""What the generation thread does: takes requests, reads their prompts piece by piece, and draws tokens of all of them together.

One round: the new requests, those taken back or too late, at most a piece of prompts, one step of the batch. So a token, a cancel or a new
request waits for no more than a piece and a step. Where the architecture can't be batched, one request has the batch to itself.
"""

from collections import deque
from dataclasses import dataclass
from itertools import zip_longest

import mlx.core as mx

from forge.errors import ServingError
from forge.serving.batch import Batch, Next, Score
from forge.serving.contract import Stats
from forge.serving.decode import Names
from forge.serving.faults import ModelFailed, PromptTooLong, ShuttingDown
from forge.serving.line import Line, Request, again
from forge.serving.loading import Loaded
from forge.serving.prefill import NOT_FINITE, Prefill
from forge.serving.prefixes import Prefixes
from forge.serving.prompt import encode, opens_thought
from forge.serving.reply import Reply, named
from forge.serving.sample import Row

_GIB = 2**30


@dataclass(eq=False)
class _Work:
    """A request and what came of it so far."""

    request: Request
    ids: list[int]
    reply: Reply
    row: Row
    prefill: Prefill


class Service:
    def __init__(self, loaded: Loaded, line: Line, slots: int, cache_gb: float):
        self._loaded, self._line = loaded, line
        self.slots = slots if loaded.batches else 1
        self._names = Names(loaded.tokenizer)
        self._prefixes = Prefixes(int(cache_gb * 1e9), loaded.piece)
        self._batch = Batch(loaded.model)
        self._waiting: deque[Request] = deque()
        self._reading: _Work | None = None
        self._answering: dict[Row, _Work] = {}
        self._open = True
        self._requests = self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0

    def run(self) -> None:
        """Until the line is closed and all is answered, or it is stopped. Every request gets its answer or an error, whatever happens."""
        why: ServingError = ModelFailed("not finished: a bug, which the log tells, has ended the model's work")
        try:
            while self._open or not self._idle():
                self._receive()
                if self._line.stop.is_set():
                    break
                self._drop()
                self._read()
                self._step()
                self._report()
            why = ShuttingDown("not finished: the server is being shut down")
        finally:
            self._fail_all(why)
            self._report()
            mx.synchronize()  # which may raise what befell the device

    def _idle(self) -> bool:
        return not (self._waiting or self._reading or self._batch.busy)

    def _receive(self) -> None:
        """Waits where there is nothing else to do."""
        wait = self._open and self._idle()
        while wait or not self._line.inbox.empty():
            request = self._line.inbox.get()
            wait = False
            if request is None:
                self._open = False
            else:
                self._requests += 1
                self._waiting.append(request)

    def _drop(self) -> None:
        """Requests taken back or too late, wherever they are."""
        for request in list(self._waiting):
            if fault := request.fault():
                self._waiting.remove(request)
                request.fail(fault)
        if self._reading and (fault := self._reading.request.fault()):
            self._reading.request.fail(fault)
            self._reading = None
        for row, work in list(self._answering.items()):
            if fault := work.request.fault():
                self._leave(row)
                work.request.fail(fault)

    def _read(self) -> None:
        """At most a piece of prompts."""
        budget = self._loaded.piece
        while budget > 0:
            if self._reading is None:
                if not self._waiting or len(self._answering) >= self.slots:
                    return
                request = self._waiting.popleft()
                try:
                    self._reading = self._begin(request)
                except Exception as error:  # handed to who waits for it
                    request.fail(error)
                    return  # to encode it may have taken long, and the next ones may be of the same client, that now takes them back
            work = self._reading
            try:
                if not work.prefill.finished:
                    budget -= self._piece(work.prefill)
                if work.prefill.finished:
                    self._reading = None
                    self._join(work)
                    if work.reply.reason:
                        return  # its prompt was encoded and named all the same, and the next ones may be as long
            except Exception as error:  # handed to who waits for it
                self._reading = None
                work.request.fail(error)

    def _piece(self, prefill: Prefill) -> int:
        try:
            return prefill.step()
        except ServingError:
            raise
        except Exception as error:  # such as no memory
            raise ModelFailed(f"the model failed at the prompt: {error}") from error

    def _begin(self, request: Request) -> _Work:
        loaded, sampling = self._loaded, request.sampling
        ids = encode(loaded.tokenizer, request.prompt)
        if max(ids) >= loaded.vocabulary:  # MLX would read what lies behind the embedding
            raise ServingError(f"the prompt's token {max(ids)} is not of this model, whose tokens are 0 to {loaded.vocabulary - 1}")
        most = min(sampling.max_tokens, _room(len(ids), loaded.context, sampling.max_tokens > 0))
        reply = Reply(loaded.tokenizer, self._names, loaded.ends, ids, sampling, most)
        scored = sampling.logprobs if sampling.echo else None
        # Without a token to draw or to score there is nothing to read: the first token alone is always read.
        prefill = Prefill(loaded.model, ids if most or scored is not None else ids[:1], loaded.piece, self._prefixes, scored)
        reply.cached = prefill.cached
        reply.thinking = opens_thought(loaded.tokenizer, request.prompt, ids)
        self._prompt_tokens += len(ids)
        self._cached_tokens += prefill.cached
        return _Work(request, ids, reply, Row(ids, sampling, most), prefill)

    def _join(self, work: _Work) -> None:
        if work.request.sampling.echo:
            scores: list[Score | None] = [None, *work.prefill.scores]
            each = zip_longest(work.ids, scores)  # there are none where they weren't asked for
            work.reply.prompt = tuple(named(self._names, token, score) for token, score in each)
        if work.reply.reason:
            work.request.answer(work.reply.completion())
        else:
            self._batch.join(work.row, work.ids[-1], work.prefill.cache)
            work.prefill.cache = []
            self._answering[work.row] = work

    def _step(self) -> None:
        try:
            landed = self._batch.step()
        except Exception as error:  # such as no memory: whose fault it was can't be told
            self._batch.clear()
            failed, self._answering = list(self._answering.values()), {}
            for each in failed:
                each.request.fail(ModelFailed(f"the model failed at a token: {error}"))
            return
        for drawn in landed:
            if work := self._answering.get(drawn.row):
                self._completion_tokens += 1
                try:
                    self._take(work, drawn)
                except Exception as error:  # handed to who waits for it
                    self._leave(drawn.row)
                    work.request.fail(error)

    def _take(self, work: _Work, drawn: Next) -> None:
        if not drawn.finite:
            raise ModelFailed(NOT_FINITE)
        if (piece := work.reply.add(drawn.token, drawn.score)) is not None:
            work.request.show(piece)
        if work.reply.reason:
            self._leave(work.row)
            work.request.answer(work.reply.completion())

    def _leave(self, row: Row) -> None:
        self._answering.pop(row, None)
        self._batch.leave([row])

    def _fail_all(self, error: ServingError) -> None:
        working = [*self._answering.values(), *([self._reading] if self._reading else [])]
        requests = [*(work.request for work in working), *self._waiting]
        self._answering, self._reading = {}, None
        self._waiting.clear()
        for request in requests:
            request.fail(again(error))

    def _report(self) -> None:
        self._line.stats = Stats(
            active=len(self._answering) + (self._reading is not None),
            queued=len(self._waiting),
            requests=self._requests,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
            memory_gib=mx.get_active_memory() / _GIB,
            peak_memory_gib=mx.get_peak_memory() / _GIB,
            prompt_cache_gib=self._prefixes.nbytes / _GIB,
        )


def _room(prompt_tokens: int, context: int | None, generates: bool) -> int:
    """How many tokens may follow the prompt; at least one where it `generates`."""
    if context is None:
        return 2**31
    if prompt_tokens + generates > context:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, but the model's context holds {context}, prompt and completion together: "
            "shorten the prompt"
        )
    return context - prompt_tokens
