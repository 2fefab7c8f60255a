"""Several models: found, listed, loaded from where the operator allows and nowhere else, unloaded. What the server says of itself."""

import json
import threading
import time
from pathlib import Path

import pytest

from forge.serving.http.limits import Limits
from forge.serving.http.metrics import _percentile
from forge.serving.service import Service
from tests.serving.http.conftest import Toy, running, until


@pytest.fixture
def roots(tmp_path: Path) -> Path:
    """roots/law is a model, roots/law/lora an adapter of it, outside/secret a model that isn't below roots, but linked from there."""
    for place in ("roots/law", "outside/secret"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
    (tmp_path / "roots" / "law" / "lora").mkdir()
    (tmp_path / "roots" / "law" / "lora" / "adapter_config.json").write_text("{}")
    (tmp_path / "roots" / "linked").symlink_to(tmp_path / "outside" / "secret")
    (tmp_path / "roots-too").mkdir()
    (tmp_path / "roots-too" / "config.json").write_text("{}")
    return tmp_path / "roots"


def ids(served) -> list[str]:
    return [model["id"] for model in served.ask("GET", "/v1/models")[2]["data"]]


def load(served, **body: str):
    return served.ask("POST", "/v1/models/load", body)


def test_a_body_names_its_model_by_name_or_source_and_without_a_name_gets_the_first(serve) -> None:
    served = serve(names=("small", "big"))
    assert ids(served) == ["small", "big"]
    for asked, closed in [({}, "small"), ({"model": "big"}, "big"), ({"model": "/models/big"}, "big")]:
        assert served.complete(**asked)[0] == 200
        assert served.service.models.find(asked.get("model")).name == closed


def test_a_model_is_loaded_by_folder_and_unloaded(serve, roots) -> None:
    served = serve(allowed=(str(roots),))
    status, _, answer = load(served, source="law")
    assert (status, answer["id"], answer["source"]["asked"]) == (200, "law", str(roots / "law"))
    assert load(served, source=str(roots / "law"), name="law2", adapter="law/lora")[2]["source"]["adapter"] == str(roots / "law" / "lora")
    assert ids(served) == ["small", "law", "law2"]
    assert [model["status"] for model in served.ask("GET", "/status")[2]["models"]] == ["ready"] * 3
    assert served.complete(model="law")[0] == 200
    assert served.ask("POST", "/v1/models/unload", {"name": "law"})[2]["unloaded"] is True
    assert served.toys["law"].closed
    assert ids(served) == ["small", "law2"]
    assert served.complete(model="law")[0] == 404


def test_what_runs_on_an_unloaded_model_ends_well(serve) -> None:
    served = serve(pause_s=0.01)
    client = served.begin(max_tokens=50)
    until(lambda: served.toys["small"].running == 1, 5)
    assert served.ask("POST", "/v1/models/unload", {"name": "small"})[0] == 200
    assert client.recv(100).startswith(b"HTTP/1.1 200")
    client.close()
    status, _, answer = served.complete()
    assert status == 404 and "load" in answer["error"]["message"]


def test_a_registered_model_is_loaded_by_a_pattern(serve) -> None:
    served = serve(allowed=("models:/law-*@champion",))
    status, _, answer = load(served, source="models:/law-fr@champion")
    assert (status, answer["id"]) == (200, "law-fr")
    assert answer["source"] == {"asked": "models:/law-fr@champion", "version": "models:/law-fr@champion#1"}
    for source in ("models:/law-fr/3", "models:/other@champion", "models:/", "/registered/law-fr"):
        assert load(served, source=source, name="x")[0] == 403, source


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("../outside/secret", 403),
        ("law/../../outside/secret", 403),
        ("linked", 403),
        ("/etc", 403),
        ("../roots-too", 403),
        ("~", 404),
        ("law\0", 400),
        ("nothing", 404),
        ("", 400),
        (".", 404),
        ("file:///etc", 404),
    ],
)
def test_no_path_leads_outside_of_what_is_allowed(serve, roots, source, status) -> None:
    served = serve(allowed=(str(roots), "models:/law@champion"))
    found, _, answer = load(served, source=source)
    assert (found, ids(served)) == (status, ["small"]), answer
    found, _, answer = load(served, source="law", adapter=source)
    assert (found, ids(served)) == (status, ["small"]), answer


def test_what_is_outside_looks_the_same_whether_it_is_there_or_not(serve, roots) -> None:
    served = serve(allowed=(str(roots),))
    there, missing = (load(served, source=str(roots.parent / place))[2] for place in ("outside/secret", "outside/none"))
    assert there == missing


def test_no_more_models_than_allowed_and_no_name_twice(serve, roots) -> None:
    served = serve(allowed=(str(roots),), limits=Limits(models=2))
    assert load(served, source="law", name="small")[0] == 409
    assert load(served, source="law")[0] == 200
    status, _, answer = load(served, source="law", name="third")
    assert status == 409 and "small, law" in answer["error"]["message"]
    assert load(served, source="law", name="a/b")[0] == 400


def test_a_model_that_a_bug_has_ended_is_told_and_can_be_loaded_again(serve_real, chat_folder, monkeypatch, capfd) -> None:
    served = serve_real(chat_folder, allowed=(str(chat_folder.parent),))
    name, engine = chat_folder.name, served.service.models.find(None).engine
    assert served.ask("GET", "/health")[::2] == (200, {"status": "ok", "models": 1, "loading": 0})
    with monkeypatch.context() as patch:
        patch.setattr(Service, "_drop", lambda self: 1 / 0)
        status, _, answer = served.complete()
        assert (status, answer["error"]["code"]) == (500, "model_failed")
    until(lambda: engine.failed, 10)
    status, _, answer = served.ask("GET", "/health")
    assert (status, answer) == (503, {"status": "failed", "failed": [name], "models": 0, "loading": 0})
    for status, _, answer in (served.complete(), served.complete(stream=True), served.ask("GET", f"/v1/models/{name}")):
        assert (status, answer["error"]["code"]) == (503, "model_failed") and "load it again" in answer["error"]["message"]
    assert ids(served) == []
    assert served.ask("GET", "/stats")[2]["models"] == {}
    assert [model["status"] for model in served.ask("GET", "/status")[2]["models"]] == ["failed"]
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert served.ask("POST", "/v1/models/unload", {"name": name})[0] == 200
    assert load(served, source=name)[0] == 200
    assert served.complete()[0] == 200
    assert served.ask("GET", "/health")[::2] == (200, {"status": "ok", "models": 1, "loading": 0})


def test_loads_that_take_long_keep_no_request_waiting(roots) -> None:
    """As many as asyncio has threads for what is slow, 32 at most, and no more than these are what checks a body."""
    left = threading.Event()

    def opener(folder: Path, adapter: Path | None) -> Toy:
        assert folder.name == "small" or left.wait(60)
        return Toy()

    with running(opener, {"small": "/models/small"}, limits=Limits(models=40), allowed=(str(roots),)) as served:
        clients = [threading.Thread(target=load, args=(served,), kwargs={"source": "law", "name": f"law{n}"}) for n in range(33)]
        for client in clients:
            client.start()
        until(lambda: served.ask("GET", "/health")[2]["loading"] == 33, 20)
        assert served.complete()[0] == 200
        left.set()
        for client in clients:
            client.join()
        assert served.ask("GET", "/health")[2] == {"status": "ok", "models": 34, "loading": 0}


def test_a_model_that_can_not_be_loaded_is_told_in_a_sentence(serve_real, chat_folder, tmp_path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "qwen3"}')
    served = serve_real(chat_folder, allowed=(str(tmp_path),))
    status, _, answer = load(served, source="broken")
    assert 400 <= status < 500 and "Traceback" not in answer["error"]["message"], answer
    assert ids(served) == [chat_folder.name]


def test_counters_move(serve) -> None:
    """Two answers of 5 tokens to prompts of 3, one refusal."""
    served = serve()
    for _ in range(2):
        served.complete(max_tokens=5)
    served.complete(model="none")
    text = served.ask("GET", "/metrics")[2]
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['forge_completion_tokens_total{model="small"}']) == 10
    assert float(lines['forge_prompt_tokens_total{model="small"}']) == 6
    assert float(lines['forge_requests_total{model="small",route="/v1/completions",status="200"}']) == 2
    assert float(lines['forge_requests_total{model="",route="/v1/completions",status="404"}']) == 1
    assert float(lines['forge_time_to_first_token_seconds_count{model="small"}']) == 2
    assert float(lines['forge_request_seconds_count{model="small"}']) == 2
    assert float(lines["process_resident_memory_bytes"]) > 1e6


def test_made_up_paths_and_names_make_no_metrics(serve) -> None:
    served = serve()
    for number in range(20):
        served.ask("GET", f"/made-up-{number}")
        served.complete(model=f"made-up-{number}")
    assert "made-up" not in served.ask("GET", "/metrics")[2]


def test_stats_are_of_what_happened(serve) -> None:
    """A toy that says a word each 20 ms: its first after 20 ms, ten after 200, so 50 a second at most."""
    served = serve(pause_s=0.02)
    for _ in range(3):
        served.complete(max_tokens=10)
    found = served.ask("GET", "/stats")[2]
    stats = found["models"]["small"]
    assert stats["answers"] == 3 and stats["active"] == 0
    assert 0.2 <= stats["latency_s"]["p50"] <= stats["latency_s"]["p95"] < 5
    assert 0.02 <= stats["time_to_first_token_s"]["p50"] < stats["latency_s"]["p50"]
    assert 0 < stats["tokens_per_s_of_a_request"]["p50"] <= 50
    assert stats["tokens_per_s_last_minute"] == pytest.approx(30 / 60)
    assert found["process_gib"] > 0


def test_percentiles_by_hand() -> None:
    """Nearest rank: of 1 to 20 the 10th is the median and the 19th the 95th percentile."""
    values = [float(n) for n in range(20, 0, -1)]
    assert (_percentile(values, 50), _percentile(values, 95), _percentile([7.0], 95), _percentile([], 50)) == (10, 19, 7, None)


def test_the_audit_log_has_a_line_for_each_request_and_no_prompt(serve, tmp_path) -> None:
    log = tmp_path / "logs" / "audit.jsonl"
    served = serve(tokens=("a-long-secret",), audit=log)
    served.complete()
    served.ask("POST", "/v1/completions", {"prompt": "hidden words", "max_tokens": 2}, Authorization="Bearer a-long-secret")
    served.ask("POST", "/v1/completions", {"prompt": "hidden words", "max_tokens": "hidden"}, Authorization="Bearer a-long-secret")
    served.ask("GET", "/health")
    until(lambda: log.read_text().count("\n") == 3, 5)
    refused, answered, mistaken = map(json.loads, log.read_text().splitlines())
    assert (refused["status"], refused["client"], refused["error"]) == (401, "127.0.0.1", "invalid_api_key")
    assert (answered["status"], answered["model"], answered["prompt_tokens"], answered["completion_tokens"]) == (200, "small", 3, 2)
    assert answered["client"].startswith("token-") and 0 < answered["first_token_s"] <= answered["seconds"]
    assert (mistaken["status"], mistaken["client"]) == (400, answered["client"])
    assert time.strptime(answered["time"][:19], "%Y-%m-%dT%H:%M:%S")
    assert "hidden" not in log.read_text() and "secret" not in log.read_text()
    assert log.stat().st_mode & 0o077 == 0


def test_the_audit_log_has_prompts_where_they_are_asked_for(serve, tmp_path) -> None:
    served = serve(audit=tmp_path / "audit.jsonl", prompts=True)
    served.complete()
    until(lambda: (tmp_path / "audit.jsonl").read_text().count("\n") == 1, 5)
    assert json.loads((tmp_path / "audit.jsonl").read_text())["body"] == {"prompt": "hi", "max_tokens": 2}
