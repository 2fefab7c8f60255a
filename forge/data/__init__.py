"""Rows in, batches and a ledger of counts out. read() needs no tokenizer, build() does.

Cost: a first start reads the text once, tokenises it and keeps both results on disk; a later one maps them into
memory, about a second for a gigabyte of text. Weights, seeds, the split and the sequence length don't tokenise again.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from forge.data import ledger, unigram
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.mix import Mixture
from forge.data.pack import PackedRows
from forge.data.split import Sides, overlap, split
from forge.data.survey import Filter, Source, Survey, survey
from forge.data.tokens import Tokenised, tokenise
from forge.errors import DataError
from forge.settings import DataSpec, EvaluationSpec
from forge.spec import Batch, Data, Ledger, Packing

_TOKENIZER_BYTES = 2**24  # a tokenizer made from the text sees at most this much of it


@dataclass(frozen=True)
class Corpus:
    """Sources surveyed and split, not yet tokenised."""

    surveys: Mapping[str, Survey]
    sides: Mapping[str, Sides]
    weights: Mapping[str, float]

    def training_texts(self) -> Iterator[str]:
        """The training text of every source in use, or an even part of it, for a tokenizer to be made from."""
        used = [name for name in self.surveys if self.weights[name] > 0]
        size = sum(int(self.surveys[name].bytes[self.sides[name].train].sum()) for name in used)
        share = min(1.0, _TOKENIZER_BYTES / max(size, 1))
        for name in used:
            found, train = self.surveys[name], self.sides[name].train
            wanted = np.zeros(len(found.keys), dtype=bool)
            wanted[train] = found.keys[train] <= max(share * 2**64, found.keys[train].min())  # keys are hashes; one row at least
            yield from (row.text for row, asked in zip(found.rows, wanted, strict=True) if asked)


def read(spec: DataSpec, sources: Mapping[str, Source], filters: Mapping[str, Filter], cache: Cache) -> Corpus:
    """Survey every source, drop duplicates, split by row. Raises DataError."""
    strict = spec.bad_rows == "error"
    surveys = {name: survey(name, source, filters, spec.near_duplicates, strict, cache) for name, source in sources.items()}
    return Corpus(surveys, split(surveys, spec, cache), {name: s.weight for name, s in spec.sources.items()})


def build(
    corpus: Corpus, spec: DataSpec, evaluation: EvaluationSpec, encoder: Encoder, cache: Cache, batch_rows: int, seed: int, packing: Packing
) -> Data:
    """Tokenise, pack and mix. Raises DataError."""
    packed = packing.packed
    parts = {name: _part(name, corpus, spec, evaluation, encoder, cache, packed) for name in corpus.surveys}
    used = {name: part for name, part in parts.items() if corpus.weights[name] > 0}
    caps = {name: s.max_epochs for name, s in spec.sources.items()}
    mixture = Mixture({name: part.train for name, part in parts.items()}, corpus.weights, batch_rows, seed, caps, not packed)
    frequencies = np.sum([unigram.count(part.tokens, part.train.documents) for part in used.values()], axis=0)
    valid = {name: _batches(part.valid, batch_rows, packed) for name, part in parts.items()}
    counts = {f"data/{name}/{key}": float(value) for name, part in parts.items() for key, value in part.counts.items()}
    counts |= {f"data/{name}/weight": weight / sum(corpus.weights.values()) for name, weight in corpus.weights.items()}
    counts |= {f"data/{name}/padding_share": padding for name, padding in mixture.padding_shares().items()}
    counts |= {"data/overlap": float(overlap(corpus.surveys, corpus.sides))}
    digests = {name: found.digest for name, found in corpus.surveys.items()}
    measured = {name: part.valid_digest for name, part in parts.items()} | {"": f"rows of {spec.sequence_length + 1}"}
    return Data(
        train=mixture,
        valid=valid,
        ledger=Ledger(
            counts=counts,
            digest=ledger.digest(digests),
            valid_digest=ledger.digest(measured),
            source_digests=digests,
            tokenizer_digest=encoder.digest,
            template_digest=encoder.template_digest,
            examples={name: (*corpus.surveys[name].examples, *part.tokens.examples) for name, part in parts.items()},
            packing=str(packing),
        ),
        epoch_tokens=int(sum(part.train.targets.sum() for part in used.values())),
        tokens_per_row=mixture.tokens_per_row,
        unigram={name: unigram.loss(frequencies, batches) for name, batches in valid.items()},
        valid_bytes={name: part.valid_bytes for name, part in parts.items()},
        test={name: _batches(part.test, batch_rows, packed) for name, part in parts.items() if len(part.test)},
        lengths={name: part.tokens.sequences.lengths[part.train.documents] for name, part in parts.items()},
        max_batches=mixture.max_batches,
    )


@dataclass(frozen=True)
class _Part:
    """One source: its tokens, the rows of its sides, those that are measured on, and its counts."""

    tokens: Tokenised
    train: PackedRows
    valid: PackedRows
    test: PackedRows
    valid_bytes: int
    valid_digest: str
    counts: Mapping[str, float]


def _part(name: str, corpus: Corpus, spec: DataSpec, evaluation: EvaluationSpec, encoder: Encoder, cache: Cache, packed: bool) -> _Part:
    found, sides, policy = corpus.surveys[name], corpus.sides[name], spec.sources[name].over_length
    tokens = tokenise(found, encoder, spec.bad_rows == "error", cache)
    row = spec.sequence_length + 1  # the last token of a row is a target only, the first an input only

    def rows(numbers: np.ndarray) -> PackedRows:
        return PackedRows(name, tokens.sequences, numbers, row, packed, policy)

    whole = {"train": rows(sides.train), "valid": rows(sides.valid), "test": rows(sides.test)}
    for side, what in (("train", "training"), ("valid", "validation")):
        if not len(whole[side]):
            why = ledger.losses(whole[side], getattr(sides, side), tokens)
            raise DataError(f"source {name!r}: no {what} row has a target ({why}); look at over_length, data.mask and the rows")
    valid, test = (rows(_measured(whole[side], found.keys, evaluation.max_tokens)) for side in ("valid", "test"))
    counts = ledger.rows_of(found, sides, tokens, whole) | ledger.tokens_of(found, sides, tokens, whole["train"])
    counts |= {"rows_evaluated": len(valid.documents), "targets_evaluated": int(valid.targets.sum())}
    return _Part(tokens, whole["train"], valid, test, _bytes(tokens, valid, encoder), _digest(tokens, valid), counts)


def _batches(rows: PackedRows, size: int, packed: bool) -> tuple[Batch, ...]:
    """All rows, those of like length together where each holds one document."""
    numbers = np.arange(len(rows)) if packed else np.argsort(rows.filled, kind="stable")
    groups = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return tuple(rows.batch(group.tolist(), None if packed else int(rows.filled[group].max())) for group in groups)


def _measured(rows: PackedRows, keys: np.ndarray, max_tokens: int) -> np.ndarray:
    """Whole documents, in the order of their keys, up to the one that would pass `max_tokens` targets; at least one.

    The order is arbitrary but fixed, since keys are hashes: it favours no folder, no alphabet and no length.
    """
    order = np.argsort(keys[rows.documents], kind="stable")
    within = np.cumsum(rows.document_targets[order]) <= max_tokens
    return np.sort(rows.documents[order[: max(1, int(within.sum()))]])


def _bytes(tokens: Tokenised, rows: PackedRows, encoder: Encoder) -> int:
    """UTF-8 bytes that the targets of `rows` spell; of a row that was truncated, those of what is left."""
    total, pieces, sequences = int(tokens.target_bytes[rows.documents].sum()), rows.pieces, tokens.sequences
    if not rows.cuts.truncated:
        return total
    for i in np.flatnonzero(pieces.sizes < sequences.lengths[pieces.documents]):
        document, start, stop = pieces.at(i)
        ids = sequences.row(document, start, stop)[sequences.mask(document, start, stop)]
        total += encoder.spelt(ids) - int(tokens.target_bytes[document])
    return total


def _digest(tokens: Tokenised, rows: PackedRows) -> str:
    """Of the ids and targets that are measured on, piece by piece in the order of the documents, whatever rows they lie in."""
    whole, pieces = hashlib.sha256(), rows.pieces
    for i in np.lexsort((pieces.starts, pieces.documents)):
        document, start, stop = pieces.at(i)
        ids = tokens.sequences.row(document, start, stop).astype(np.int32)
        whole.update(len(ids).to_bytes(8, "big") + ids.tobytes() + tokens.sequences.mask(document, start, stop).tobytes())
    return whole.hexdigest()
