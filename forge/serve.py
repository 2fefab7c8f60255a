"""python -m forge.serve model=models:/NAME@champion : serves models over OpenAI's routes until Ctrl-C.

    python -m forge.serve model=~/my-model port=8000
    python -m forge.serve "model={small: models:/law@champion, big: ~/big}" "adapter={big: ~/lora}" slots=16
    FORGE_SERVE_TOKEN=… python -m forge.serve model=models:/law@champion host=0.0.0.0 rate=60 audit=~/audit.jsonl

    model       a registered model, a folder in the Hugging Face layout, or several by name
    adapter     a folder with a LoRA adapter for the model, or several by the model's name
    host, port  127.0.0.1 and 8000; another host only with a token
    token       what clients send as `Authorization: Bearer …`; FORGE_SERVE_TOKEN, which no list of processes shows; several by comma
    mode        auto: chat where the tokenizer has a chat template; instruct, base: one of the two whatever it has
    allow       what POST /v1/models/load may load: folders, and patterns such as models:/law-*@champion; max_models at one time
    cors        origins of web pages that may ask, such as https://app.example.org
    slots       completions computed at once by a model; queue: that may wait besides; cache_gb: memory for prompts seen before
    timeout_s   for a request; read_s: for it to come; grace_s: for what runs when the server is stopped; body_mb: of a request's body
    rate        requests a minute for each client, burst of them at once
    audit       a file for a line of JSON a request, or stderr; prompts=true: what was sent, too
    uri         the tracking store (default: MLFLOW_TRACKING_URI, else mlflow.db at the root)

Routes: POST /v1/chat/completions /v1/completions /v1/models/load /v1/models/unload; GET /v1/models /health /status /stats /metrics.
"""

import os
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked

from forge import keys, paths
from forge.entry import entry
from forge.errors import ConfigError, ServingError, Stopped
from forge.serving.prompt import Mode
from forge.signals import Interrupts

if TYPE_CHECKING:
    from forge.serving.http.models import Models, Source

_TOKEN = "token="


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named(value: Any) -> Any:
    return {"": value} if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[\w.:-]{0,64}$")]
Named = Annotated[dict[Name, str], BeforeValidator(_named)]
Listed = Annotated[list[str], BeforeValidator(_listed)]
Origin = Annotated[str, Field(pattern=r"^https?://[^/*\s]+$")]
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


@checked(frozen=True, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Settings:
    """What each means is said at the top of the file."""

    model: Annotated[Named, Field(min_length=1, examples=keys.MODELS)]
    adapter: Named = Field(default_factory=dict)
    mode: Mode = "auto"
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allow: Listed = Field(default_factory=list)
    max_models: Count = 4
    cors: Annotated[list[Origin], BeforeValidator(_listed)] = Field(default_factory=list)
    slots: Count = 8
    queue: Annotated[int, Field(ge=0)] = 64
    cache_gb: Annotated[float, Field(ge=0)] = 1.0
    timeout_s: Seconds = 300.0
    read_s: Seconds = 30.0
    grace_s: Seconds = 10.0
    body_mb: Seconds = 2.0
    rate: Seconds | None = None
    burst: Count = 20
    audit: str | None = None
    prompts: bool = False
    uri: str | None = None


def main(argv: list[str]) -> int:
    """The exit code: that of an error, or of the signal that ended it."""
    return entry(_serve, argv, interrupted="stopped before it served")


def _serve(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    settings = keys.read(Settings, [word for word in argv if not word.startswith(_TOKEN)])
    tokens = _tokens(argv)
    try:
        with Interrupts():
            _run(settings, tokens)
    except Stopped as stopped:
        print("forge: stopped", file=sys.stderr)
        return stopped.exit_code
    return 0


def _tokens(argv: list[str]) -> list[str]:
    """Read by themselves, so that no message about a wrong setting shows them, and none is taken for a number."""
    given = [word.removeprefix(_TOKEN) for word in argv if word.startswith(_TOKEN)] or [os.environ.get("FORGE_SERVE_TOKEN", "")]
    tokens = [token.strip() for text in given for token in text.split(",") if token.strip()]
    if not tokens and any(word.startswith(_TOKEN) for word in argv):
        raise ConfigError("token: is empty; leave it out, or set one")
    return tokens


def _run(settings: Settings, tokens: list[str]) -> None:
    """Imports wait until the settings are known to be right."""
    from forge.serving.http import app, server
    from forge.serving.http.audit import Audit
    from forge.serving.http.auth import Tokens, is_local
    from forge.serving.http.limits import Limits
    from forge.serving.http.metrics import Metrics
    from forge.serving.http.models import Models
    from forge.serving.http.service import Service
    from forge.serving.http.sources import REGISTERED, Allowed

    if not tokens and not is_local(settings.host):
        raise ConfigError(
            f"host: {settings.host!r} is open to other machines, which needs a token: set FORGE_SERVE_TOKEN, or leave host out"
        )
    sources = _sources(settings)
    audited = settings.audit if settings.audit in (None, "stderr") else str(paths.given("audit", settings.audit))
    allowed = Allowed([place if place.startswith(REGISTERED) else str(paths.given("allow", place)) for place in settings.allow])
    body_bytes = int(settings.body_mb * 1e6)
    limits = Limits(settings.timeout_s, settings.read_s, body_bytes, settings.queue, settings.rate, settings.burst, settings.max_models)
    models = Models(_opener(settings), _fetcher(settings.uri), limits)
    with closing(server.bound(settings.host, settings.port)) as listener, closing(Audit(audited, settings.prompts)) as audit:
        cors = tuple(settings.cors)
        service = Service(models, Metrics(models.live), audit, limits, Tokens(tokens), allowed, cors, settings.mode)
        for source in sources:
            _load(models, source)
        port = listener.getsockname()[1]
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        print(f"serving {', '.join(source.name for source in sources)} at http://{shown}:{port}/v1, Ctrl-C stops", flush=True)
        server.run(app.build(service), listener, models.stop, settings.grace_s, settings.read_s)


def _sources(settings: Settings) -> list["Source"]:
    """What to load, in the order given. Folders are looked at before anything heavy is imported."""
    from forge.serving.http.manage import name_of
    from forge.serving.http.models import Source
    from forge.serving.http.sources import REGISTERED

    def place(text: str) -> str:
        return text if text.startswith(REGISTERED) else str(paths.given("model", text).absolute())

    found = [Source(name or name_of(place(source)), place(source)) for name, source in settings.model.items()]
    for source in found:
        if not source.asked.startswith(REGISTERED) and not Path(source.asked, "config.json").is_file():
            raise ServingError(f"model: there is none in {source.asked} (no config.json); give a folder, or models:/NAME@ALIAS")
    adapters = {name or found[0].name: place(adapter) for name, adapter in settings.adapter.items()}
    if unknown := set(adapters) - {source.name for source in found}:
        names = ", ".join(source.name for source in found)
        raise ConfigError(f"adapter: there is no model {', '.join(sorted(unknown))} to put it on, but {names}")
    return [Source(source.name, source.asked, adapters.get(source.name)) for source in found]


def _load(models: "Models", source: "Source") -> None:
    started = time.monotonic()
    print(f"loading {source.name} from {source.asked}", flush=True)
    models.add(models.opened(source))
    print(f"loaded {source.name} in {time.monotonic() - started:.1f} s", flush=True)


def _opener(settings: Settings) -> Any:
    def opened(folder: Path, adapter: Path | None) -> Any:
        from forge.serving.engine import GenerationThread

        return GenerationThread(folder, slots=settings.slots, cache_gb=settings.cache_gb, adapter=adapter)

    return opened


def _fetcher(uri: str | None) -> Any:
    def fetched(source: str) -> tuple[Path, str]:
        from forge.tracking import reader, registry

        reader.opened(uri)  # one that is there: none is made
        return registry.fetch(uri, source)

    return fetched


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
