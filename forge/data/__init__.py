"""Rows in, batches and a ledger of counts out. read() needs no tokenizer, build() does.

Cost: a first start reads the text once, tokenises it and keeps both results on disk; a later one maps them into
memory, about a second for a gigabyte of text. Weights, seeds, the split and the sequence length don't tokenise again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forge.data import ledger, lots, unigram
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.lots import Lots
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

    @property
    def digests(self) -> dict[str, str]:
        """Of each source's rows."""
        return {name: found.digest for name, found in self.surveys.items()}

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
    counts = {f"data/{name}/{key}": float(value) for name, part in parts.items() for key, value in part.counts.items()}
    counts |= {f"data/{name}/weight": weight / sum(corpus.weights.values()) for name, weight in corpus.weights.items()}
    counts |= {f"data/{name}/padding_share": padding for name, padding in mixture.padding_shares().items()}
    counts |= {"data/overlap": float(overlap(corpus.surveys, corpus.sides))}

    def batches(side: str) -> dict[str, Sequence[Batch]]:
        return {name: Lots(part.held[side], batch_rows, packed) for name, part in parts.items() if len(part.held[side])}

    def spelt(side: str) -> dict[str, int]:
        return {name: lots.spelt(part.tokens, part.held[side], encoder) for name, part in parts.items() if len(part.held[side])}

    def measure(side: str) -> str:
        """Of what the loss of all sources together is measured on, and of how much a token sees."""
        measured = {name: lots.digest(part.tokens, part.held[side]) for name, part in used.items()}
        return ledger.digest(measured | {"": f"rows of {spec.sequence_length + 1}"})

    valid = batches("valid")
    return Data(
        train=mixture,
        valid=valid,
        ledger=Ledger(
            counts=counts,
            digest=ledger.digest(corpus.digests),
            valid_digest=measure("valid"),
            source_digests=corpus.digests,
            tokenizer_digest=encoder.digest,
            template_digest=encoder.template_digest,
            examples={name: (*corpus.surveys[name].examples, *part.tokens.examples) for name, part in parts.items()},
            packing=str(packing),
        ),
        epoch_tokens=int(sum(part.train.targets.sum() for part in used.values())),
        tokens_per_row=mixture.tokens_per_row,
        unigram={name: unigram.loss(frequencies, each) for name, each in valid.items()},
        valid_bytes=spelt("valid"),
        valid_full=batches("full"),
        full_bytes=spelt("full"),
        full_digest=measure("full"),
        test=batches("test"),
        test_bytes=spelt("test"),
        unweighted=frozenset(parts.keys() - used.keys()),
        lengths={name: part.tokens.sequences.lengths[part.train.documents] for name, part in parts.items()},
        max_batches=mixture.max_batches,
    )


@dataclass(frozen=True)
class _Part:
    """One source: its tokens, the rows to train on, those that are measured on (valid, full, test), and its counts."""

    tokens: Tokenised
    train: PackedRows
    held: Mapping[str, PackedRows]
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
    few = evaluation.max_tokens
    many = None if evaluation.full_tokens is None else max(few, evaluation.full_tokens)  # what is measured often is a part of all
    chosen = {"valid": ("valid", few), "full": ("valid", many), "test": ("test", many)}
    held = {what: rows(lots.measured(whole[side], found.keys, limit)) for what, (side, limit) in chosen.items()}
    counts = ledger.rows_of(found, sides, tokens, whole) | ledger.tokens_of(found, sides, tokens, whole["train"])
    for what, ending in (("valid", ""), ("full", "_full"), ("test", "_test")):
        if len(held[what]):
            counts[f"rows_evaluated{ending}"] = len(held[what].documents)
            counts[f"targets_evaluated{ending}"] = int(held[what].targets.sum())
    return _Part(tokens, whole["train"], held, counts)
