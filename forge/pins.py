"""What a run's numbers depend on: code, versions, machine, settings, data and base, as the run recorded them and as they are now."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from forge.config import Config
from forge.data.preview import printable
from forge.errors import DataError, ModelError
from forge.models import device
from forge.spec import Ledger
from forge.tracking import provenance, reader, registry
from forge.tracking.reader import Seen

if TYPE_CHECKING:
    from forge.assemble import Parts
    from forge.tracking.reader import MlflowClient

_COMMIT = "mlflow.source.git.commit"
_DIGEST = 12  # digits that are shown
_PACKED = " quantised to "
_MACHINE = {
    "forge.blas": "BLAS",
    "forge.blas_kernels": "BLAS kernels",
    "forge.device": "device",
    "forge.device_name": "device's name",
    "forge.cores": "cores",
    "forge.processes": "processes",
    "forge.host": "machine",
}


@dataclass(frozen=True)
class Pin:
    """`then` None: the run did not record it; `now` None: it could not be looked at. `decides`: where it drifted the numbers can't be
    equal, else they may be."""

    name: str
    then: str | None
    now: str | None
    decides: bool = False

    @property
    def drifted(self) -> bool:
        return self.then is not None and self.now is not None and self.then != self.now


def around(client: "MlflowClient", run: Seen, config: Config) -> list[Pin]:
    """All but data and base. `config`: the run's own. Costs some calls of git."""
    tags, now = run.tags, provenance.tags()
    held = reader.text(client, run.id, "config/uncommitted.diff")
    then_dirty, now_dirty = (_dirt(tags, held or ""), _dirt(now, provenance.dirty_diff()))
    found = [Pin("code commit", tags.get(_COMMIT), now.get(_COMMIT, "none")), Pin("uncommitted changes", then_dirty, now_dirty or "none")]
    then, versions = _versions(tags.get("forge.versions", "")), provenance.versions()
    found += [Pin(name, then.get(name), versions.get(name, "not installed")) for name in then | versions]
    here = {tag: now.get(tag) for tag in ("forge.blas", "forge.blas_kernels", "forge.host")} | device.describe()
    here["forge.processes"] = "1"
    found += [Pin(words, tags[tag], here.get(tag)) for tag, words in _MACHINE.items() if tag in tags]
    return [*found, Pin("configuration", tags.get("forge.identity"), config.identity, decides=True)]


def ground(run: Seen, config: Config) -> list[Pin]:
    """Data and base. Reads the rows and loads the base, as the start of a run does; nothing of it stays in memory."""
    from forge.assemble import assemble

    tags = run.tags
    then = {name: tags.get(f"forge.{tag}") for name, tag in _DIGESTS.items()} | {"base": base_of(tags)[1]}
    try:
        parts = assemble(config, partial(registry.fetch, config.tracking.uri))
    except (DataError, ModelError) as error:
        why = str(error).splitlines()[0]
        broken = "data" if isinstance(error, DataError) else "base"
        return [Pin(name, then[name], why if name == broken else None, decides=True) for name in then]
    now = _digests(parts.data.ledger) | {"measured in full": parts.data.full_digest, "base": parts.loaded.lineage.revision}
    return [Pin(name, then[name], now[name], decides=True) for name in then]


def base_of(tags: Mapping[str, str]) -> tuple[str, str | None]:
    """Kind and revision of the base that a run recorded, which is written KIND URI REVISION: a URI may hold spaces."""
    kind, _, rest = tags.get("forge.base", "").partition(" ")
    named, packed, how = rest.partition(_PACKED)
    revision = named.rpartition(" ")[2]
    return kind, revision + packed + how if revision else None


def exact(run: Seen) -> list[str]:
    """Overrides that name the base by the version or commit that the run had, where its settings name what may move."""
    return [f"model.{key}={value}" for key, value in _moving(run).items()]


def with_own_base(config: Config, run: Seen) -> Config:
    """`config`, the run's own, with the base that exact() names; identity and settings stay those of the run."""
    return replace(config, model=partial(config.model, **_moving(run)))


def require_own(run: Seen, parts: "Parts") -> None:
    """Raises ModelError where the base is no longer the one that the run had, or its tokenizer another: a checkpoint says nothing then."""
    (kind, then), now = base_of(run.tags), parts.loaded.lineage
    if kind == "scratch" and run.tags.get("forge.tokenizer_digest") != parts.data.ledger.tokenizer_digest:
        raise ModelError(
            f"run {run.name} ({run.id[:8]}): its tokenizer was made from its training text, and this is another; leave data as the run had "
            "it, or take the version that it registered: models:/NAME/VERSION"
        )
    if then != now.revision:
        raise ModelError(f"run {run.name} ({run.id[:8]}): its base {now.uri} was {then} and is {now.revision} now; put it back")


def _moving(run: Seen) -> dict[str, str]:
    """The knob of a loader that names what may move, and what the run had there; empty where nothing may."""
    kind, revision = base_of(run.tags)
    key = {"registry": "uri", "hub": "revision"}.get(kind)
    return {key: revision.partition(_PACKED)[0]} if key and revision else {}


def relative(config: Config) -> list[str]:
    """The settings that are paths below the folder in which the run was started, which no run records."""
    sources = {f"data.sources.{name}.source": spec.source for name, spec in config.data.sources.items()}
    nodes: dict[str, Any] = {"model": config.resolved["model"], **sources}
    paths = {f"{at}.{key}": node[key] for at, node in nodes.items() for key in ("path", "paths", "files") if node.get(key)}
    every = [(key, path) for key, value in paths.items() for path in (value if isinstance(value, list) else [value])]
    return [f"{key}={path}" for key, path in every if isinstance(path, str) and not path.startswith(("/", "~"))]


def shown(value: str | None) -> str:
    """For a table: long digests cut, nothing that orders a terminal about."""
    if not value:
        return "not known" if value is None else "none"
    is_digest = len(value) > _DIGEST and all(char in "0123456789abcdef" for char in value)
    return value[:_DIGEST] if is_digest else printable(value, one_line=True)


_DIGESTS = {
    "data": "data_digest",
    "validation": "valid_digest",
    "measured in full": "full_digest",
    "tokenizer": "tokenizer_digest",
    "chat template": "template_digest",
}


def _digests(ledger: Ledger) -> dict[str, str]:
    return {
        "data": ledger.digest,
        "validation": ledger.valid_digest,
        "tokenizer": ledger.tokenizer_digest,
        "chat template": ledger.template_digest,
    }


def _dirt(tags: Mapping[str, str], diff: str) -> str | None:
    if "forge.git_dirty" not in tags:
        return None
    if tags["forge.git_dirty"] != "true":
        return "none"
    return f"{len(diff.splitlines())} lines, {sha256(diff.encode()).hexdigest()[:8]}" if diff else "untracked files"


def _versions(text: str) -> dict[str, str]:
    """ "python 3.11.2, mlx 0.32.4" by name."""
    pairs = (item.rpartition(" ") for item in text.split(", ") if " " in item)
    return {name: version for name, _, version in pairs}
