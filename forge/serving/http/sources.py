"""Where models may come from while the server runs: folders below roots, and registered names, that the operator allowed."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from forge.serving.http.faults import Refusal

REGISTERED = "models:/"


class Allowed:
    """`places`: folders, below which any model may be loaded, and patterns of registered models, such as models:/law-*@champion."""

    def __init__(self, places: Sequence[str]):
        self._patterns = [place for place in places if place.startswith(REGISTERED)]
        self._roots = [Path(place).resolve() for place in places if not place.startswith(REGISTERED)]

    def check(self, source: str, marker: str = "config.json") -> str:
        """`source` where it is allowed, a folder that holds `marker` as its real path. Raises Refusal 403 and 404."""
        if not self._patterns and not self._roots:
            raise Refusal(403, "this server loads no further models: start it with allow=[FOLDER, models:/NAME@ALIAS]")
        if source.startswith(REGISTERED):
            if any(fnmatchcase(source, pattern) for pattern in self._patterns):
                return source
            raise Refusal(403, f"{source} is not allowed here; allowed are {', '.join(self._patterns) or 'folders only'}")
        return str(self._folder(source, marker))

    def _folder(self, source: str, marker: str) -> Path:
        """A relative path is looked for below each root. Outside of them what is there and what isn't get the same answer."""
        if "\0" in source:
            raise Refusal(400, "a path holds no zero bytes")
        try:
            candidates = [(root, (root / source).resolve()) for root in self._roots]
            found = [folder for root, folder in candidates if folder.is_relative_to(root) and (folder / marker).is_file()]
        except (OSError, UnicodeEncodeError) as error:
            raise Refusal(400, "no folder can have that name") from error
        if not any(folder.is_relative_to(root) for root, folder in candidates):
            raise Refusal(403, "that folder is outside the places that this server loads models from")
        if not found:
            raise Refusal(404, f"nothing to load in {source[:200]}: there is no {marker}", "model_not_found")
        return found[0]
