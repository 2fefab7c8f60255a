"""The split by document: what is on each side, what is dropped, and what moves nothing."""

import pytest

from forge.data.split import Split, split
from forge.errors import DataError
from forge.spec import Document


def made(name: str, numbers: range) -> list[Document]:
    return [Document(f"{name}/{n}", f"{name} text {n}", name) for n in numbers]


def ids(side: tuple[Document, ...]) -> set[str]:
    return {document.id for document in side}


def test_every_document_is_on_exactly_one_side() -> None:
    documents = made("a", range(500))
    result = split({"a": documents}, 0.2, seed=0)["a"]
    assert ids(result.train) | ids(result.valid) == {document.id for document in documents}
    assert not ids(result.train) & ids(result.valid)
    assert len(result.train) + len(result.valid) == 500


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_share_held_out_is_near_the_one_asked_for(fraction: float) -> None:
    """2,000 draws: the standard deviation is at most sqrt(0.25 / 2000) = 0.011, so 0.04 is more than three of them."""
    result = split({"a": made("a", range(2000))}, fraction, seed=0)["a"]
    assert abs(len(result.valid) / 2000 - fraction) < 0.04


def test_no_text_is_on_two_sides_in_one_source_or_across_two() -> None:
    """`b` repeats half of `a`'s texts under other ids, and every text of its own twice."""
    repeats = [Document(f"b/copy{n}", f"a text {n}", "b") for n in range(100)]
    own = made("b", range(200)) + [Document(f"b/again{n}", f"b text {n}", "b") for n in range(200)]
    result = split({"a": made("a", range(200)), "b": repeats + own}, 0.3, seed=0)
    train = [document.text for side in result.values() for document in side.train]
    valid = [document.text for side in result.values() for document in side.valid]
    assert not set(train) & set(valid)
    assert len(train + valid) == len(set(train + valid)) == 400
    assert (result["a"].duplicates, result["b"].duplicates) == (0, 300)


def test_documents_of_one_key_are_duplicates_whatever_their_text() -> None:
    copies = [Document(f"copy/{n}", f"text {n}", "a", key="one key") for n in range(10)]
    result = split({"a": made("a", range(50)) + copies}, 0.3, seed=0)["a"]
    assert result.duplicates == 9
    assert len([document for document in result.train + result.valid if document.key == "one key"]) == 1


def test_the_counts_add_up() -> None:
    documents = made("a", range(100)) + made("a", range(30)) + [Document(f"e/{n}", blank, "a") for n, blank in enumerate(["", " ", "\n\t"])]
    result = split({"a": documents}, 0.3, seed=0)["a"]
    assert (result.rows_in, result.duplicates, result.empty) == (133, 30, 3)
    assert result.rows_in == len(result.train) + len(result.valid) + result.duplicates + result.empty


def test_another_seed_holds_out_other_documents() -> None:
    """Independent draws of 0.3: about 0.09 · 500 = 45 in common, not 150."""
    documents = made("a", range(500))
    first, second = (ids(split({"a": documents}, 0.3, seed)["a"].valid) for seed in (0, 1))
    assert len(first & second) < 80


def test_the_same_seed_holds_out_the_same_documents() -> None:
    documents = made("a", range(100))
    assert split({"a": documents}, 0.3, seed=5) == split({"a": documents}, 0.3, seed=5)


def test_a_new_document_moves_no_other() -> None:
    before = split({"a": made("a", range(100)), "b": made("b", range(100))}, 0.3, seed=0)
    after = split({"a": [*made("new", range(1)), *made("a", range(100))], "b": made("b", range(100))}, 0.3, seed=0)
    assert ids(before["a"].train) == ids(after["a"].train) - {"new/0"}
    assert ids(before["a"].valid) == ids(after["a"].valid) - {"new/0"}
    assert before["b"] == after["b"]


def test_order_changes_no_side() -> None:
    documents = made("a", range(100))
    forwards, backwards = (split({"a": order}, 0.3, seed=0)["a"] for order in (documents, documents[::-1]))
    assert ids(forwards.valid) == ids(backwards.valid)


@pytest.mark.parametrize("change", [("a/7", "a text 7!"), ("a/seven", "a text 7")], ids=["text", "id"])
def test_the_digest_sees_one_changed_byte(change: tuple[str, str]) -> None:
    documents = made("a", range(100))
    changed = [Document(*change, "a") if document.id == "a/7" else document for document in documents]

    def digest(rows: list[Document]) -> str:
        return split({"a": rows}, 0.3, seed=0)["a"].digest

    assert digest(changed) != digest(documents) == digest(made("a", range(100)))


def test_the_digest_knows_where_a_text_begins() -> None:
    """Without lengths between them, ids and texts run into each other: ("a", "bc") and ("ab", "c") would be equal."""
    rest = made("rest", range(50))
    one, other = (split({"a": [*rest, Document(*pair, "a")]}, 0.3, seed=0)["a"].digest for pair in (("a", "bc"), ("ab", "c")))
    assert one != other


@pytest.mark.parametrize(("fraction", "sizes"), [(1e-9, (2, 1)), (1 - 1e-9, (1, 2))])
def test_a_small_source_has_both_sides_whatever_chance_says(fraction: float, sizes: tuple[int, int]) -> None:
    for seed in range(5):
        result = split({"small": made("small", range(3))}, fraction, seed)["small"]
        assert (len(result.train), len(result.valid)) == sizes


def test_one_document_cannot_be_split() -> None:
    twins = [Document("a", "text", "a"), Document("b", "text", "b"), Document("c", " ", "c")]
    with pytest.raises(DataError, match=r"source 'small': 1 documents can't be split .*\(3 read, 1 duplicates, 1 empty\); add documents"):
        split({"small": twins}, 0.5, seed=0)


def test_a_lone_surrogate_is_a_text_like_any_other() -> None:
    result: Split = split({"a": [*made("a", range(50)), Document("odd", "half \ud83d of a pair", "a")]}, 0.3, seed=0)["a"]
    assert len(result.train) + len(result.valid) == 51
