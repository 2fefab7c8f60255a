"""The models that are loaded, by name: found, loaded, unloaded, and kept from being asked for more than they can take."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from forge.serving.contract import Sampling, Stats
from forge.serving.http.call import Call, Engine
from forge.serving.http.faults import Refusal, busy
from forge.serving.http.limits import Limits
from forge.serving.http.sources import REGISTERED

T = TypeVar("T")
Fetch = Callable[[str], tuple[Path, str]]  # a registered model's uri -> its folder, and the uri of its version
Open = Callable[[Path, Path | None], Engine]  # a folder and an adapter's -> what generates


@dataclass(frozen=True)
class Source:
    """`asked`: as the operator or a client wrote it; `version`: what that was when it was loaded."""

    name: str
    asked: str
    adapter: str | None = None
    version: str | None = None


@dataclass(frozen=True, eq=False)
class Model:
    source: Source
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.source.name

    def require_ready(self) -> None:
        """Raises Refusal 503 where its thread has ended by a bug."""
        if self.engine.failed:
            raise Refusal(503, f"{self.name} has failed, and the server's log tells why: unload it and load it again", "model_failed")

    def shown(self) -> dict[str, Any]:
        """OpenAI's object, and after it where the model is from, its context in tokens and whether it has a chat template."""
        known = {key: value for key, value in vars(self.source).items() if key != "name" and value}
        standard = {"id": self.name, "object": "model", "created": self.created, "owned_by": "forge"}
        return {**standard, "source": known, "context": self.engine.context, "chat": self.engine.tokenizer_has_template}


class Models:
    """All methods but `opened` and `stop` belong to the event loop."""

    def __init__(self, opener: Open, fetch: Fetch, limits: Limits):
        self._open, self._fetch, self._limits = opener, fetch, limits
        self._models: dict[str, Model] = {}
        self._loading: set[asyncio.Task[Model]] = set()
        self._calls: dict[Call, Model] = {}
        self._stopping = False

    def all(self) -> list[Model]:
        """Those that failed, too."""
        return list(self._models.values())

    def ready(self) -> list[Model]:
        return [model for model in self.all() if not model.engine.failed]

    def failed(self) -> list[str]:
        return [model.name for model in self.all() if model.engine.failed]

    def loading(self) -> list[str]:
        return [task.get_name() for task in self._loading]

    def live(self) -> dict[str, Stats]:
        return {model.name: model.engine.stats() for model in self.ready()}

    def find(self, name: str | None) -> Model:
        """By its name or its source; the first loaded where None. Raises Refusal 404, which names those there are."""
        if not self._models:
            raise Refusal(404, "no model is loaded: load one with POST /v1/models/load", "model_not_found", "model")
        if name is None:
            return next(iter(self._models.values()))
        found = self._models.get(name) or next((model for model in self.all() if model.source.asked == name), None)
        if found is None:
            raise Refusal(404, f"no model {name[:100]!r} here; there are {', '.join(self._models)}", "model_not_found", "model")
        return found

    @contextmanager
    def call(self, model: Model, jobs: Sequence[tuple[Any, Sampling]], pieces: bool, typical_s: float) -> Iterator[Call]:
        """The jobs, given to the model; what of them is left at the end is cancelled.

        Raises Refusal: 429 where they don't fit beside those that the model has already, 400 where they never would, 503 where the
        model has failed or the server ends.
        """
        if self._stopping:
            raise Refusal(503, "the server is being stopped", "shutting_down")
        model.require_ready()
        self._require_room(model, len(jobs), typical_s)
        call = Call(model.engine, jobs, self._limits.timeout_s, pieces)
        self._calls[call] = model
        try:
            yield call
        finally:
            call.cancel()
            del self._calls[call]

    def _require_room(self, model: Model, wanted: int, typical_s: float) -> None:
        """A model has no more completions than it computes at once and than may wait, whichever requests they are of."""
        slots = model.engine.slots
        most = slots + self._limits.queue
        if wanted > most:
            raise Refusal(400, f"{wanted} completions are asked for at once, and {model.name} takes {most} at most: send several requests")
        held = sum(call.unfinished for call, called in self._calls.items() if called is model)
        if held + wanted > most:
            raise busy(f"{model.name} takes {most} completions at most, and has {held} already", typical_s * max(1, held / slots))

    def opened(self, source: Source) -> Model:
        """A model, loaded in this thread. Raises ForgeError."""
        folder, version = self._fetch(source.asked) if source.asked.startswith(REGISTERED) else (Path(source.asked), None)
        engine = self._open(folder, Path(source.adapter) if source.adapter else None)
        return Model(replace(source, version=version), engine)

    def add(self, model: Model) -> None:
        self._models[model.name] = model

    async def load(self, source: Source) -> Model:
        """Open it in another thread, and add it, even where the client leaves. Raises Refusal 409: the name is taken, or no more fit."""
        taken = [*self._models, *self.loading()]
        if source.name in taken:
            raise Refusal(409, f"{source.name} is loaded already: unload it first, or give this one another name", param="name")
        if len(taken) >= self._limits.models:
            raise Refusal(409, f"{len(taken)} models are loaded, and no more may be: unload one first ({', '.join(taken)})")
        task = asyncio.create_task(self._load(source), name=source.name)
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)
        return await asyncio.shield(task)

    async def _load(self, source: Source) -> Model:
        model = await _apart(lambda: self.opened(source))
        self.add(model)
        return model

    def unload(self, name: str) -> Model:
        """Nobody finds it any more; its memory is free when what was asked of it is done. Raises Refusal 404."""
        model = self.find(name)
        del self._models[model.name]
        model.engine.close()
        return model

    def stop(self) -> None:
        """Take nothing new, and end what runs."""
        self._stopping = True
        for call in list(self._calls):  # called beside the event loop, where calls end meanwhile
            call.cancel()


async def _apart(work: Callable[[], T]) -> T:
    """What `work` returns, from a thread of its own: it may take minutes, for which everyone would lack one of asyncio's few threads, and
    the end of the process would wait."""
    future: Future[T] = Future()

    def run() -> None:
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:  # handed to who waits
                future.set_exception(error)

    threading.Thread(target=run, name="forge-load", daemon=True).start()
    return await asyncio.wrap_future(future)
