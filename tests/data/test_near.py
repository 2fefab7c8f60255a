"""Near duplicates: what signatures estimate, and who goes."""

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from forge.data.near import banding, duplicates, missed, signatures

PERMUTATIONS, SHINGLE = 128, 5
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "io", "ou") for c in ("n", "rk", "lt", "ss")]


def signed(texts: list[str]) -> np.ndarray:
    return signatures(texts, permutations=PERMUTATIONS, shingle=SHINGLE)


def written(rng: random.Random, words: int = 200) -> list[str]:
    return rng.choices(WORDS, k=words)


def edited(text: list[str], share: float, rng: random.Random) -> list[str]:
    """`share` of the words, and at least one, exchanged for words that stand nowhere else."""
    changed = rng.sample(range(len(text)), k=max(1, round(share * len(text))))
    return [f"new{rng.randrange(10**9)}" if n in changed else word for n, word in enumerate(text)]


def kana(rng: random.Random) -> list[str]:
    return rng.choices("あいうえおかきくけこさしすせそたちつてとなにぬねの", k=200)


def miswritten(text: list[str], share: float, rng: random.Random) -> list[str]:
    return [kana(rng)[0] if rng.random() < share else letter for letter in text]


def sentences(letters: list[str]) -> str:
    return "。".join("".join(letters[n : n + 10]) for n in range(0, len(letters), 10))


def jaccard(one: list[str], other: list[str]) -> float:
    """Of the sets of runs of five units, counted here."""
    a, b = ({tuple(units[n : n + SHINGLE]) for n in range(len(units) - SHINGLE + 1)} for units in (one, other))
    return len(a & b) / len(a | b)


def rows(*distances: list[int], columns: int = 100) -> np.ndarray:
    """One row for each list: 0 everywhere but in the columns it names, which hold a number of the row's own."""
    made = np.zeros((len(distances), columns), dtype=np.uint32)
    for number, places in enumerate(distances, start=1):
        made[number - 1, places] = number
    return made


@pytest.mark.parametrize("joined", ["words", "letters"])
def test_the_share_that_agrees_estimates_the_jaccard_similarity(joined: str) -> None:
    """Within 4 standard errors sqrt(J (1 - J) / P) for each of 300 pairs, and within one on average: the errors have no side."""
    rng = random.Random(0)
    first, edit, text = {"words": (written, edited, " ".join), "letters": (kana, miswritten, sentences)}[joined]
    pairs = [(one := first(rng), one if n % 30 == 0 else edit(one, n % 30 / 100, rng)) for n in range(300)]
    exact = np.array([jaccard(one, other) for one, other in pairs])
    estimated = (signed([text(one) for one, _ in pairs]) == signed([text(other) for _, other in pairs])).mean(axis=1)
    error = np.sqrt(exact * (1 - exact) / PERMUTATIONS)
    assert exact.min() < 0.2 and np.all(np.abs(estimated - exact) <= 4 * error)
    assert np.all(estimated[exact == 1] == 1) and abs((estimated - exact).mean()) < error.mean() / 5


@pytest.mark.parametrize("share", [0.01, 0.03])
def test_planted_near_duplicates_go_and_unrelated_texts_stay(share: float) -> None:
    """3 % of 200 words, 6 of them, touch at most 30 of 196 shingles: J >= 166/226 = 0.73. 200 each; at 0.6 none comes near the border."""
    rng = random.Random(1)
    texts = [written(rng) for _ in range(200)]
    copies = [edited(text, share, rng) for text in texts]
    (dropped,) = duplicates([signed([" ".join(text) for text in texts + copies])], 0.6)
    assert not dropped[:200].any() and dropped[200:].all()


def test_case_punctuation_layout_and_encoding_make_no_difference() -> None:
    one = "The cat sat on the mat, and the dog watched. Then it slept: a café ﬁlm."
    other = "the  cat — sat on the mat\nand the DOG watched; then (it) slept! A cafe\u0301 film"
    different = "The cat sat on the mat, and the dog watched. Then it slept: a café song."
    (dropped,) = duplicates([signed([one, other, different])], 0.95)
    assert dropped.tolist() == [False, True, False]


def test_the_order_of_words_makes_a_difference() -> None:
    text = written(random.Random(5))
    assert duplicates([signed([" ".join(text), " ".join(reversed(text))])], 0.2)[0].tolist() == [False, False]


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        ("Thank you so much", "Thank you so much!", True),  # 13 runs of 5 characters and 14: J = 13/14
        ("Thank you so much", "Sorry, I can't", False),
        ("yes", "Yes", True),
        ("yes", "no", False),
        ("!!!", "???", False),
        ("", " \n", True),
    ],
)
def test_texts_of_less_than_a_shingle_are_compared_by_their_characters(one: str, other: str, near: bool) -> None:
    assert duplicates([signed([one, other])], 0.5)[0].tolist() == [False, near]


def test_the_first_of_a_group_stays_in_the_order_of_sources_and_rows() -> None:
    rng = random.Random(2)
    a, b, c = (written(rng) for _ in range(3))
    first = [a, b, edited(a, 0.01, rng)]
    second = [c, edited(b, 0.01, rng), edited(c, 0.01, rng), edited(a, 0.01, rng)]
    one, two = (signed([" ".join(text) for text in texts]) for texts in (first, second))
    dropped = duplicates([one, two], 0.7)
    assert [each.tolist() for each in dropped] == [[False, False, True], [False, True, True, True]]
    dropped = duplicates([two, np.empty((0, PERMUTATIONS), np.uint32), one], 0.7)
    assert [each.tolist() for each in dropped] == [[False, False, True, False], [], [True, True, True]]


def test_nearness_starts_at_the_threshold() -> None:
    """Of 100 columns 80 agree, and 79."""
    assert duplicates([rows([], [*range(20)])], 0.8)[0].tolist() == [False, True]
    assert duplicates([rows([], [*range(21)])], 0.8)[0].tolist() == [False, False]


def test_a_row_near_only_to_one_that_goes_stays() -> None:
    """B agrees with A and C in 85 columns of 100, A and C agree in 70; with B first both of the others go."""
    a, b, c = rows([*range(15)], [], [*range(15, 30)])
    assert duplicates([np.stack([a, b, c])], 0.8)[0].tolist() == [False, True, False]
    assert duplicates([np.stack([b, a, c])], 0.8)[0].tolist() == [False, True, True]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_pairs_just_at_the_threshold_are_missed_as_rarely_as_is_said(threshold: float) -> None:
    """20,000 pairs in which each column agrees with the threshold's probability: misses are binomial. One row more misses too many."""
    bands, width = banding(threshold, PERMUTATIONS)
    said = missed(threshold, bands, width)
    agree = np.random.default_rng(0).random((20_000, bands, width)) < threshold
    found = agree.all(axis=2).any(axis=1).mean()
    assert said <= 0.005 and abs(1 - found - said) <= 4 * np.sqrt(said / 20_000)
    assert (1 - threshold ** (width + 1)) ** (PERMUTATIONS // (width + 1)) > 0.005


def test_the_bands_find_what_comparing_all_pairs_finds() -> None:
    """A group of 8 that differ ever more, for each of 40 texts; at most a pair in 200 may be missed at the threshold, and here none is."""
    rng = random.Random(3)
    texts = [edited(text, 0.01 * n, rng) for text in [written(rng) for _ in range(40)] for n in range(8)]
    rng.shuffle(texts)
    table = signed([" ".join(text) for text in texts])
    kept: list[int] = []
    expected = []
    for row in range(len(table)):
        near = any((table[row] == table[other]).mean() >= 0.7 for other in kept)
        expected.append(near)
        if not near:
            kept.append(row)
    assert duplicates([table[:100], table[100:]], 0.7)[1].tolist() == expected[100:] and 40 < len(kept) < 250


def test_many_rows_of_one_template_and_one_text_are_told_apart() -> None:
    """500 rows agree in 60 of 100 columns with each other. Every tenth has a twin, far behind, that differs from it in ten others.

    Each of the 8 bands of 5 columns outside the template has one of these ten, so twins meet only where all rows do.
    """
    assert banding(0.8, 100) == (20, 5)
    made = np.random.default_rng(0).integers(1, 2**32, (500, 100), dtype=np.uint32)
    made[:, 20:80] = 0
    twins = made[::10].copy()
    twins[:, [0, 4, 8, 12, 16, 80, 84, 88, 92, 96]] += 1
    (dropped,) = duplicates([np.concatenate([made, twins])], 0.8)
    assert np.flatnonzero(dropped).tolist() == [*range(500, 550)]


def test_signatures_don_t_depend_on_what_stands_beside_a_text() -> None:
    rng = random.Random(4)
    texts = [" ".join(written(rng, rng.randrange(1, 60))) for _ in range(300)]
    table = signed(texts)
    assert table.shape == (300, PERMUTATIONS) and table.dtype == np.uint32
    assert np.array_equal(table, np.concatenate([signed(texts[:7]), signed(texts[7:150]), signed(texts[150:])]))
    assert signed([]).shape == (0, PERMUTATIONS) and duplicates([], 0.8) == []


def test_signatures_are_the_same_in_another_process() -> None:
    """Under any hash seed of Python's and any number of threads."""
    code = (
        "import hashlib; from forge.data.near import signatures; "
        "texts = [f'the cat {n} sat on the mat, 猫は{n}畳の上に座った' for n in range(400)]; "
        "print(hashlib.sha256(signatures(texts, permutations=64, shingle=3).tobytes()).hexdigest())"
    )
    seen = set()
    for seed, threads in (("1", "1"), ("2", "4")):
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        seen.add(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.strip())
    texts = [f"the cat {n} sat on the mat, 猫は{n}畳の上に座った" for n in range(400)]
    assert seen == {hashlib.sha256(signatures(texts, permutations=64, shingle=3).tobytes()).hexdigest()}
