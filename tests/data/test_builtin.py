"""The built-in corpus, made from the Python that runs the tests."""

import posixpath

import pytest

from forge.data.sources import builtin
from forge.spec import Document


@pytest.fixture(scope="module")
def stdlib() -> list[Document]:
    return list(builtin.stdlib())


@pytest.fixture(scope="module")
def reference() -> list[Document]:
    return list(builtin.reference())


def names(documents: list[Document]) -> list[str]:
    """Dotted names: the id is stdlib/<where>:<name>."""
    return [document.id.rpartition(":")[2] for document in documents]


def test_there_is_enough_text_to_train_on(stdlib: list[Document], reference: list[Document]) -> None:
    assert len(stdlib) > 4000 and sum(len(document.text) for document in stdlib) > 1_000_000
    assert len(reference) > 50 and sum(len(document.text) for document in reference) > 200_000


def test_every_document_has_text_and_an_origin(stdlib: list[Document], reference: list[Document]) -> None:
    assert all(document.text.strip() and document.origin for document in stdlib + reference)


def test_ids_are_unique(stdlib: list[Document], reference: list[Document]) -> None:
    ids = [document.id for document in stdlib + reference]
    assert sorted(ids) == sorted(set(ids))


def test_a_function_comes_with_its_signature_and_its_docstring(stdlib: list[Document]) -> None:
    (dumps,) = (document for document in stdlib if document.id.endswith(":json.dumps"))
    heading, empty, first = dumps.text.splitlines()[:3]
    assert heading.startswith("json.dumps(obj, *, skipkeys=False") and heading.endswith(")")
    assert empty == "" and first == "Serialize ``obj`` to a JSON formatted ``str``."


def test_compiled_modules_are_there_too(stdlib: list[Document]) -> None:
    (localtime,) = (document for document in stdlib if document.id.endswith(":time.localtime"))
    assert "tm_year" in localtime.text


def test_modules_classes_and_methods_are_documented(stdlib: list[Document]) -> None:
    assert {"argparse", "argparse.ArgumentParser", "json.encoder.JSONEncoder.encode"} <= set(names(stdlib))


def test_nothing_private_and_no_test_module_is_in(stdlib: list[Document]) -> None:
    parts = [part for name in names(stdlib) for part in name.split(".")]
    assert not [part for part in parts if part.startswith("_")]
    assert not [document.id for document in stdlib if "/test/" in document.origin or document.origin.startswith("site-packages")]


def test_two_readings_are_the_same(stdlib: list[Document], reference: list[Document]) -> None:
    assert list(builtin.stdlib()) == stdlib
    assert list(builtin.reference()) == reference


def test_one_docstring_in_two_places_has_one_key(stdlib: list[Document]) -> None:
    posix, nt = ([d for d in stdlib if d.id.endswith(f":{module}.basename")] for module in ("posixpath", "ntpath"))
    assert posix[0].id != nt[0].id and posix[0].text != nt[0].text
    assert posix[0].key == nt[0].key == posixpath.basename.__doc__


def test_the_reference_holds_the_topics_of_help(reference: list[Document]) -> None:
    (topic,) = (document for document in reference if document.id == "reference/for")
    assert "iterable" in topic.text and topic.text.endswith("\n") and not topic.text.endswith("\n\n")
