"""One file -> its rows. What a file holds is told by its suffix; nothing here raises for what is in it."""

import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from forge.data.sources.readers import documents, records, tables
from forge.data.sources.readers.rows import Knobs
from forge.data.sources.readers.text import opened
from forge.spec import BadRow, Row

_SUFFIXES = {
    "text": ".txt .text .md .markdown .mdx .rst .adoc .tex .org .log",
    "code": ".py .pyi .js .mjs .cjs .ts .jsx .tsx .java .c .h .cc .cpp .cxx .hh .hpp .cs .go .rs .rb .php .swift .kt .kts .scala .groovy"
    " .dart .m .mm .pl .pm .lua .r .jl .hs .ml .mli .ex .exs .erl .clj .lisp .el .zig .nim .f90 .sh .bash .zsh .fish .ps1 .bat .sql .css"
    " .scss .less .vue .svelte .proto .graphql .cmake .gradle .tf .yaml .yml .toml .ini .cfg .conf .properties",
    "json": ".json",
    "jsonl": ".jsonl .ndjson",
    "csv": ".csv",
    "tsv": ".tsv",
    "html": ".html .htm .xhtml",
    "xml": ".xml",
    "pdf": ".pdf",
    "parquet": ".parquet",
}
_KINDS = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
READ = "text and code, .json, .jsonl, .csv, .tsv, .parquet, .html, .xml chats and .pdf, text also as .gz and .zst"


class Kind(NamedTuple):
    """`name`: how a file is read, None where it is not. `suffix`: what it is counted under where it gives no rows."""

    name: str | None
    suffix: str
    compression: str | None


def kind_of(name: str) -> Kind:
    stem, suffix = posixpath.splitext(name.lower())
    compression = _COMPRESSIONS.get(suffix)
    if compression is None:
        return Kind(_KINDS.get(suffix), _counted(suffix), None)
    inner = posixpath.splitext(stem)[1]
    kind = _KINDS.get(inner)
    return Kind(None if kind in ("pdf", "parquet") else kind, _counted(inner + suffix), compression)


def _counted(suffix: str) -> str:
    """Few names, of characters that a metric's may have: names with a dot in them would give any number."""
    return "none" if not suffix else suffix if re.fullmatch(r"(\.[a-z][a-z0-9_-]{0,11}){1,2}|\.\d?[a-z0-9]{1,4}", suffix) else "other"


def read(path: str, name: str, kind: Kind, knobs: Knobs) -> Iterator[Row | None]:
    """The rows of a file that has a kind, in order. `name` begins their ids and origins. None: XML that holds no chat."""
    count = 0
    try:
        for row in _rows(path, name, kind, knobs):
            yield row
            count += 1
    except OSError as error:
        what = f"{error.strerror or error}" + (f" after {count} rows" if count else "")
        yield BadRow(name, "unreadable", f"{what}; mend the file or its permissions, or move it away")


def _rows(path: str, name: str, kind: Kind, knobs: Knobs) -> Iterator[Row | None]:
    if kind.name == "pdf":
        yield documents.pdf(path, name, knobs)
    elif kind.name == "parquet":
        yield from tables.parquet_file(path, name, knobs)
    else:
        with opened(path, kind.compression) as stream:
            match kind.name:
                case "json":
                    yield from records.json_file(stream, name, knobs)
                case "jsonl":
                    yield from records.json_lines(stream, name, knobs)
                case "csv" | "tsv":
                    yield from tables.csv_file(stream, name, knobs, "," if kind.name == "csv" else "\t")
                case "html":
                    yield documents.html(stream, name, knobs)
                case "xml":
                    yield documents.xml(stream, name, knobs)
                case _:
                    yield documents.text(stream, name, knobs, guess=kind.name == "text")
