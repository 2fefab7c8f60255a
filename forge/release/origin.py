"""Where a base came from and what it may be used for, as far as its own files say. Nothing is downloaded, nothing is guessed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forge.models import Loaded, hubcache
from forge.spec import Fetch, Lineage

UNKNOWN = "unknown"
_BEGINNINGS = {  # how the texts of licences begin, spaces as one
    "apache-2.0": r"Apache License Version 2\.0,",
    "mit": r"(?:(?:The )?MIT License )?(?:\(MIT\) )?(?:Copyright .{0,200}? )?Permission is hereby granted, free of charge, to any person",
}


@dataclass(frozen=True)
class Origin:
    """`base`: what a card names as the base; None where there is none. `license` as the hub writes it, `said_by` which file says so;
    `fields` what else belongs to it (license_name, license_link); `file` the text, which goes with the model."""

    base: str | None
    license: str = UNKNOWN
    said_by: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    file: Path | None = None


def find(loaded: Loaded, fetch: Fetch) -> Origin:
    """By the front matter of the base folder's README.md, else its licence file, else config.json."""
    lineage = loaded.lineage
    if lineage.kind == "scratch":
        return Origin(None)
    folder = _folder(lineage, fetch)
    file = next((path for path in sorted(folder.glob("LICEN[SC]E*")) if path.is_file()), None) if folder else None
    base = Path(lineage.uri).name if lineage.kind == "local" else lineage.uri
    matter = _front_matter(folder / "README.md") if folder else {}
    if matter.get("license"):
        others = {key: str(matter[key]) for key in ("license_name", "license_link") if matter.get(key)}
        return Origin(base, str(matter["license"]), "README.md", others, file)
    if file:
        return _by_its_text(base, file)
    if isinstance(stated := loaded.config.get("license"), str):
        return Origin(base, stated, "config.json")
    return Origin(base)


def _by_its_text(base: str, file: Path) -> Origin:
    text = " ".join(file.read_text(encoding="utf-8", errors="replace")[:4000].split())
    found = next((name for name, beginning in _BEGINNINGS.items() if re.match(beginning, text)), None)
    if found:
        return Origin(base, found, file.name, file=file)
    return Origin(base, "other", file.name, {"license_name": file.name, "license_link": file.name}, file)


def _folder(lineage: Lineage, fetch: Fetch) -> Path | None:
    if lineage.kind == "local":
        return Path(lineage.uri)
    revision = lineage.revision.split(" ")[0]  # "… quantised to 4 bits" says what became of it here
    if lineage.kind == "registry":
        return fetch(revision)[0]
    return hubcache.cached(lineage.uri, revision)


def _front_matter(readme: Path) -> dict[str, Any]:
    """Empty where there is none, or none that can be read."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError

    try:
        return ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict() if readme.is_file() else {}
    except (OSError, ValueError, YAMLError):
        return {}
