"""Sources of documents: source(*, knobs) -> Iterable[Document]. One function and one YAML each."""
