"""The counts of the data path: every row read is on a side, bad, or dropped for a reason, and the sum is checked."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from forge.data.pack import PackedRows
from forge.data.split import Sides
from forge.data.survey import Survey
from forge.data.tokens import Tokenised
from forge.settings import LimitsSpec
from forge.spec import Ledger


def rows_of(found: Survey, sides: Sides, tokenised: Tokenised, packed: Mapping[str, PackedRows]) -> dict[str, int]:
    """What became of each row of one source, by name without prefix. `packed` holds the rows of each side."""
    on_a_side = np.zeros(len(found.keys), dtype=bool)
    on_a_side[np.concatenate([sides.train, sides.valid, sides.test])] = True
    refused = Counter(reason for n, reason in tokenised.bad.items() if on_a_side[n])
    bad = Counter(found.bad) + refused
    dropped = Counter(found.dropped) + Counter(sides.dropped)
    for side in packed.values():
        dropped += Counter(side.left_out)
    dropped["one_token"] -= refused.total()  # these have no token, and a reason of their own
    counts = {"rows_in": found.rows_in, **{f"rows_{side}": len(rows.documents) for side, rows in packed.items()}}
    counts |= {"rows_bad": bad.total(), "rows_dropped": dropped.total()}
    assert counts["rows_in"] == sum(count for name, count in counts.items() if name != "rows_in"), f"rows don't add up: {counts}"
    kinds = {"rows_bad": bad, "rows_dropped": dropped, "files_skipped": found.skipped, "rows_noted": tokenised.notes}
    for kind, by_reason in kinds.items():
        named: Counter[str] = Counter()
        for reason, count in by_reason.items():
            named[f"{kind}/{_in_a_name(reason)}"] += count
        counts |= +named
    return counts | ({"rows_pairs": found.pairs} if found.pairs else {})


def _in_a_name(reason: str) -> str:
    """Trackers take few characters in a metric's name."""
    return re.sub(r"[^\w./-]", "_", reason, flags=re.ASCII)


def tokens_of(found: Survey, sides: Sides, tokenised: Tokenised, train: PackedRows) -> dict[str, int]:
    """Tokens of one source, by name without prefix: of all rows that the survey kept; of those to train on, and what becomes of them."""
    lengths = tokenised.sequences.lengths
    return {
        "bytes_in": int(found.bytes.sum()),
        "tokens_in": int(lengths.sum()),
        "tokens_train": int(lengths[sides.train].sum()),
        "tokens_cut": train.tokens_cut,
        "tokens_packed": int(train.filled.sum()),
        "rows_split": train.cuts.split,
        "rows_truncated": train.cuts.truncated,
        "targets_train": int(train.targets.sum()),
        "rows_packed": len(train),
    }


def losses(rows: PackedRows, numbers: np.ndarray, tokenised: Tokenised) -> str:
    """Why rows `numbers` of a side were left out, in words."""
    refused = Counter(tokenised.bad[n] for n in numbers.tolist() if n in tokenised.bad)
    reasons = Counter(rows.left_out) - Counter({"one_token": refused.total()}) + refused
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "there is none"


def digest(parts: Mapping[str, str]) -> str:
    """One digest of named ones."""
    return hashlib.sha256("\n".join(f"{name} {part}" for name, part in sorted(parts.items())).encode()).hexdigest()


def broken(ledger: Ledger, limits: LimitsSpec) -> list[str]:
    """One line for each reason not to start: a limit that a source breaks, or preference pairs in use, which no objective learns from."""
    return [line for name in ledger.source_digests for line in _broken(name, ledger.counts, limits)]


_SHARES = {  # limit: (parts, whole, what to do)
    "bad_share": (("rows_bad",), "rows_in", "mend these rows"),
    "dropped_share": (("rows_dropped",), "rows_in", "look at data.filters and at the rows"),
    "duplicate_share": (("rows_dropped/duplicate", "rows_dropped/near_duplicate"), "rows_in", "remove the copies"),
    "cut_share": (("tokens_cut",), "tokens_train", "raise data.sequence_length, or set the source's over_length to split"),
}


def _broken(name: str, counts: Mapping[str, float], limits: LimitsSpec) -> Iterator[str]:
    def get(key: str) -> float:
        return counts.get(f"data/{name}/{key}", 0)

    if get("rows_pairs") and get("weight"):
        yield f"source {name!r} holds preference pairs, and the objective learns from text; set data.sources.{name}.weight=0"
    values = {limit: sum(map(get, parts)) / max(get(whole), 1) for limit, (parts, whole, _) in _SHARES.items()}
    values |= {"padding_share": get("padding_share"), "epochs": get("epochs_planned")}
    ways_out = {limit: way for limit, (_, _, way) in _SHARES.items()}
    ways_out |= {"padding_share": "set data.packing=pack or another sequence_length", "epochs": "lower its weight or trainer.budget"}
    for limit, value in values.items():
        allowed = getattr(limits, limit)
        if allowed is not None and value > allowed:
            yield f"source {name!r}: {limit} is {value:.4g}, above data.limits.{limit}={allowed:g}; {ways_out[limit]}, or raise the limit"


def table(ledger: Ledger) -> dict[str, list[object]]:
    """A column of names, and one of counts for each source; None where it has no such count. What holds for all stands in each."""
    own = {name: _own(ledger, name) for name in ledger.source_digests}
    counts = list(dict.fromkeys(count for column in own.values() for count in column))
    return {"count": [*counts], **{name: [column.get(count) for count in counts] for name, column in own.items()}}


def _own(ledger: Ledger, source: str) -> dict[str, float]:
    prefix, others = f"data/{source}/", tuple(f"data/{name}/" for name in ledger.source_digests)
    return {
        key.removeprefix(prefix).removeprefix("data/"): n
        for key, n in ledger.counts.items()
        if not key.startswith(others) or key.startswith(prefix)
    }
