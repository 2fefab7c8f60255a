"""lm-evaluation-harness on a tiny model and local tasks: its numbers against a log-softmax by hand."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from forge import progress
from forge.errors import ConfigError
from forge.evaluation import harness
from forge.models import Loaded
from forge.settings import HarnessSpec

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

ROWS = [
    {"question": "the cat sat on the", "choices": [" mat", " hill and looked"], "answer": 0},
    {"question": "a dog ran over the", "choices": [" mat", " hill"], "answer": 1},
    {"question": "hi there, how", "choices": [" is the cat", " add"], "answer": 0},
]


def by_hand(loaded: Loaded, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One forward pass of the model itself and a log-softmax in float64."""
    logits = np.array(loaded.model(mx.array([context + continuation]))[0].astype(mx.float32), dtype=np.float64)
    logits = logits[len(context) - 1 : -1]
    logprobs = (
        logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) - logits.max(axis=1, keepdims=True)
    )
    return float(logprobs[range(len(continuation)), continuation].sum()), bool((logits.argmax(axis=1) == continuation).all())


@pytest.fixture
def loaded(make_tiny_model: Callable[..., Loaded]) -> Loaded:
    return make_tiny_model()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three local tasks: choices, perplexity of text, and generation."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.json").write_text("\n".join(map(json.dumps, ROWS)))
    common = (
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/rows.json}}, cache_dir: {folder}/cache}}\ntest_split: test\n"
    )
    kinds = {
        "toy_choice": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: answer\n"
        "target_delimiter: ''\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        "toy_text": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{question}}'\n"
        "metric_list: [{metric: byte_perplexity}]\n",
        "toy_words": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: ' mat'\n"
        "generation_kwargs: {until: ['e'], max_gen_toks: 6}\nmetric_list: [{metric: exact_match}]\n",
        "toy_sampled": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: ' mat'\n"
        "generation_kwargs: {until: ['e'], do_sample: true, temperature: 0.7}\nmetric_list: [{metric: exact_match}]\n",
    }
    for name, text in kinds.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}{text}")
    far = f"task: toy_far\ndataset_path: nobody/nothing\ntest_split: test\n{kinds['toy_words']}"
    (folder / "toy_far.yaml").write_text(far)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_log_likelihoods_are_those_by_hand_in_any_batch(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    requests = [
        (draw.integers(3, 280, size=size).tolist(), draw.integers(3, 280, size=more).tolist())
        for size, more in [(1, 1), (9, 2), (4, 30), (2, 5)]
    ]
    context = requests[1][0]
    requests.append((context, [int(mx.argmax(loaded.model(mx.array([context]))[0, -1]).item())]))  # the likeliest
    requests.append((context, []))
    for positions in (2**13, 40, 1):
        monkeypatch.setattr(harness, "_POSITIONS", positions)
        found = harness.scores(loaded, requests)
        expected = [by_hand(loaded, context, continuation) for context, continuation in requests]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected] == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("context", "continuation", "longest", "expected"),
    [
        ([1, 2, 3], [4, 5], 9, ([1, 2, 3], [4, 5])),
        ([1, 2, 3], [4, 5], 3, ([2, 3], [4, 5])),  # inputs 2 3 4
        ([1, 2, 3], [4, 5], 1, ([4], [5])),  # a token of context there is always
        ([1], [], 5, ([1], [])),
    ],
)
def test_a_request_is_cut_from_the_left(context: list[int], continuation: list[int], longest: int, expected: Any) -> None:
    assert harness._within(context, continuation, longest) == expected


def test_the_harness_scores_local_tasks(
    loaded: Loaded, tasks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Accuracy and byte perplexity by hand; every random state stays as it was, and nothing is written, outside a repository too."""
    monkeypatch.chdir(tmp_path)
    spec = HarnessSpec(tasks=["toy_choice", "toy_text", "toy_words"], include_path=str(tasks))
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    found = harness.harness(loaded, spec)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
    assert capfd.readouterr() == ("", "")
    encode = loaded.tokenizer.encode

    def choice(row: dict[str, Any]) -> int:
        context = encode(row["question"])
        likelihoods = [by_hand(loaded, context, encode(row["question"] + each)[len(context) :])[0] for each in row["choices"]]
        return int(np.argmax(likelihoods))

    assert found["harness/toy_choice/acc"] == pytest.approx(sum(choice(row) == row["answer"] for row in ROWS) / 3)
    start = loaded.tokenizer.bos_token_id
    nats = [by_hand(loaded, [start], encode(row["question"]))[0] for row in ROWS]
    size = sum(len(row["question"].encode()) for row in ROWS)
    assert found["harness/toy_text/byte_perplexity"] == pytest.approx(math.exp(-sum(nats) / size), rel=1e-4)
    assert 0 <= found["harness/toy_words/exact_match"] <= 1
    assert found.keys() == {"harness/toy_choice/acc", "harness/toy_text/byte_perplexity", "harness/toy_words/exact_match"}


def test_it_says_where_it_is_as_forge_does(
    loaded: Loaded, tasks: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three rows each, of which one task scores two continuations."""
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    spec = HarnessSpec(tasks=["toy_choice", "toy_words"], include_path=str(tasks))
    harness.require(spec)
    harness.harness(loaded, spec)
    out, err = capfd.readouterr()
    told = ["reading toy_choice", "reading toy_words", *[f"prompt {n} of 3" for n in (1, 2, 3)] * 2]
    told += [f"tokenising prompt {n} of 6" for n in range(1, 7)] + ["scored 0 of 6 continuations"]
    told += [f"answer {n} of 3" for n in (1, 2, 3)]
    assert err == "" and out.splitlines() == [f"lm-evaluation-harness: {line}" for line in told]


def test_what_is_generated_ends_before_a_stop_string(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.evaluation.answers import generate

    ids = loaded.tokenizer.encode("the cat")
    ((tokens, _),) = generate(loaded.model, loaded.tokenizer, [ids], [12])
    text = loaded.tokenizer.decode(list(tokens))
    stop = text[3:5]
    asked = [
        SimpleNamespace(args=("the cat", {"until": [stop, "never"], "max_gen_toks": 12})),
        SimpleNamespace(args=("the cat", {"until": [], "max_gen_toks": 4})),
        SimpleNamespace(args=("the cat", {"until": [""], "max_gen_toks": 4})),
    ]
    found = harness.adapted(loaded).generate_until(asked)
    whole = loaded.tokenizer.decode(list(tokens[:4]))
    assert found == [text.partition(stop)[0], whole, whole]


def test_text_longer_than_the_context_is_scored_in_windows(loaded: Loaded) -> None:
    """Each token once, given as much before it as there is room for: windows of 4 inputs."""
    short = replace(loaded, config={**loaded.config, "max_position_embeddings": 4})
    text = "hi there, how is"
    ids, start = loaded.tokenizer.encode(text), loaded.tokenizer.bos_token_id
    windows = [([start], ids[:4])] + [([ids[at - 1]], ids[at : at + 4]) for at in range(4, len(ids) // 4 * 4, 4)]
    if rest := len(ids) % 4:
        windows.append((ids[-4 - 1 : -rest], ids[-rest:]))
    expected = sum(by_hand(loaded, context, continuation)[0] for context, continuation in windows)
    (found,) = harness.adapted(short).loglikelihood_rolling([SimpleNamespace(args=(text,))])
    assert found == pytest.approx(expected, abs=1e-3)


def test_nothing_is_asked_where_no_task_is_named(loaded: Loaded) -> None:
    harness.require(HarnessSpec())
    assert harness.harness(loaded, HarnessSpec()) == {}


def test_tasks_that_can_not_be_had_are_refused_before_anything_is_loaded(tasks: Path) -> None:
    harness.require(HarnessSpec(tasks=["toy_choice"], include_path=str(tasks)))
    with pytest.raises(ConfigError, match=r"the rows of toy_far can't be had .*; is the network there"):
        harness.require(HarnessSpec(tasks=["toy_choice", "toy_far"], include_path=str(tasks)))
    with pytest.raises(ConfigError, match="include_path=/nowhere: there is no such folder"):
        harness.require(HarnessSpec(tasks=["toy_choice"], include_path="/nowhere"))


@pytest.mark.slow  # the harness reads all its own tasks
def test_a_task_that_is_not_there_is_named(tasks: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no 'toy_nothing'; see evaluation\.harness\.include_path"):
        harness.require(HarnessSpec(tasks=["toy_choice", "toy_nothing"], include_path=str(tasks)))


def test_a_task_that_samples_is_refused(loaded: Loaded, tasks: Path) -> None:
    with pytest.raises(ConfigError, match="a task samples"):
        harness.harness(loaded, HarnessSpec(tasks=["toy_sampled"], include_path=str(tasks)))


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match=r"needs lm_eval\.tasks: pip install 'forge-mlx\[lm-eval\]'"):
        harness.require(HarnessSpec(tasks=["toy_choice"]))
