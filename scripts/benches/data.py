"""Prepares a gigabyte of text as a run does, and the same text with the tokenizers library alone.

The text is the built-in corpus in documents of 500 to 10,000 characters, repeated, with one word in fifteen exchanged, so that none is a
duplicate. Preparing runs in processes of their own, for their peak memory; the library is measured before and after, on a tenth of the
text, which it gets a thousand documents at a time, and keeps nothing.
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_SHARD = 50_000_000  # bytes a file
_PREPARE = """
import json, resource, sys, time
from pathlib import Path
begun = time.perf_counter()
from transformers import PreTrainedTokenizerFast
from forge import data
from forge.data.cache import Cache
from forge.data.encode import Encoder
from forge.data.sources.files import folder
from forge.settings import DataSpec, EvaluationSpec, SourceSpec
from forge.spec import Packing
place = Path(sys.argv[1])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"), eos_token="<|end|>")
started = time.perf_counter()
cache = Cache(place / "cache", 20.0)
spec = DataSpec({"text": SourceSpec({})}, sequence_length=2048, valid_fraction=0.05, split_seed=0)
corpus = data.read(spec, {"text": lambda: folder(path=str(place / "text"))}, {}, cache)
built = data.build(corpus, spec, EvaluationSpec(20_000), Encoder(tokenizer), cache, 8, 0, Packing(True, "the bench"))
built.train.next()
done = time.perf_counter()
scale = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "seconds": done - started, "process_s": done - begun, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9,
    "tokens": built.ledger.counts["data/text/tokens_train"], "padding": built.ledger.counts["data/text/padding_share"],
}))
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--gb", type=float, default=1.0)
    size = int(arguments.parse_args().gb * 1e9)
    place = Path(tempfile.mkdtemp(prefix="forge-bench-"))
    try:
        documents = _built_in()
        _write(place, documents, size)
        time.sleep(3)  # files that have just been written count as being written still
        library = [_library(place, size // 10)]
        first, second = _prepare(place), _prepare(place)
        library.append(_library(place, size // 10))
    finally:
        shutil.rmtree(place)
    rate, raw = size / first["seconds"] / 1e6, statistics.median(library)
    print(f"text                 {size / 1e9:.2f} GB, {first['tokens'] / 1e6:.0f} M training tokens, padding {first['padding']:.2%}")
    print(f"tokenizers alone     {raw:.2f} MB/s ({', '.join(f'{r:.2f}' for r in library)})")
    print(
        f"first start          {first['seconds']:.1f} s, {rate:.2f} MB/s, {rate / raw:.0%} of the library; peak {first['peak_gb']:.2f} GB"
    )
    print(f"second start         {second['seconds']:.2f} s ({second['process_s']:.2f} s with imports); peak {second['peak_gb']:.2f} GB")


def _built_in() -> list[str]:
    from forge.data.sources.builtin import reference, stdlib

    rng = random.Random(0)
    whole = "".join(document.text for source in (stdlib, reference) for document in source())
    documents, at = [], 0
    while at < len(whole):
        size = int(500 * 20 ** rng.random())
        documents.append(whole[at : at + size])
        at += size
    return documents


def _write(place: Path, documents: list[str], size: int) -> None:
    """Shards of JSON lines, and a byte-level BPE tokenizer of 16,384 tokens made from the documents as they are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=16384, special_tokens=["<|end|>"], show_progress=False))
    bpe.save(str(place / "tokenizer.json"))
    (place / "text").mkdir()
    written, shard, texts = 0, 0, _perturbed(documents)
    while written < size:
        with (place / "text" / f"{shard:04d}.jsonl").open("w", encoding="utf-8") as file:
            until = min(size, written + _SHARD)
            while written < until:
                text = next(texts)
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                written += len(text.encode())
        shard += 1


def _perturbed(documents: list[str]) -> Iterator[str]:
    rng = random.Random(0)
    words = [word for text in documents[:500] for word in text.split()]
    while True:
        for text in documents:
            parts = text.split(" ")
            for _ in range(len(parts) // 15 + 1):
                parts[rng.randrange(len(parts))] = rng.choice(words) + str(rng.randrange(1000))
            yield " ".join(parts)


def _library(place: Path, size: int) -> float:
    """MB/s of encode_batch_fast on texts that are in memory, a thousand at a time."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    seconds, done = 0.0, 0
    for chunk in _thousands(place / "text"):
        if done >= size:
            break
        started = time.perf_counter()
        tokenizer.encode_batch_fast(chunk)
        seconds += time.perf_counter() - started
        done += sum(len(text.encode()) for text in chunk)
    return done / seconds / 1e6


def _thousands(folder: Path) -> Iterator[list[str]]:
    for shard in sorted(folder.iterdir()):
        with shard.open(encoding="utf-8") as file:
            while chunk := [json.loads(line)["text"] for line in itertools.islice(file, 1000)]:
                yield chunk


def _prepare(place: Path) -> dict[str, float]:
    result = subprocess.run([sys.executable, "-c", _PREPARE, str(place)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
