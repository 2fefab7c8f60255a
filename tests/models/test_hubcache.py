"""Models of the hub, against one of the test's own that notes what it is asked: the cache first, the network only where it has to be."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from forge.errors import ModelError
from forge.models import Loaded, fuse, loaders

OLD, NEW = "1" * 40, "2" * 40
REVISIONS = {"main": NEW, "v1": OLD, OLD: OLD, NEW: NEW}


class _Answers(BaseHTTPRequestHandler):
    """The three routes that a download takes, for each repository a folder of that name below `files`."""

    protocol_version = "HTTP/1.1"

    def __init__(self, files: Path, asked: list[str], breaks: list[str], *rest: Any):
        self._files, self._asked, self._breaks = files, asked, breaks
        super().__init__(*rest)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self._asked.append(self.path)
        path = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
        folder = self._files / path[0] / path[1]
        if not folder.is_dir():
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, body)
        route, revision = path[2], path[3].replace("%2F", "/")
        if revision not in REVISIONS:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev id: {revision}"}, body)
        if route == "revision":
            return self._send(200, json.dumps({"id": "/".join(path[:2]), "sha": REVISIONS[revision]}).encode(), {}, body)
        if route == "tree":
            named = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": _digest(f)} for f in sorted(folder.iterdir())]
            return self._send(200, json.dumps(named).encode(), {}, body)
        file = folder / path[4]
        if body and file.name in self._breaks:
            self._breaks.remove(file.name)
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.close_connection = True
            return None
        return self._send(200, file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": REVISIONS[revision]}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _digest(file: Path) -> str:
    return sha1(file.read_bytes()).hexdigest()


class Hub:
    """`files`/OWNER/NAME holds a repository's files; `asked` is what came in, `breaks` files whose next download breaks off; `cache`: the
    local one."""

    def __init__(self, folder: Path):
        self.files, self.cache, self.asked = folder / "hub", folder / "cache", list[str]()
        self.breaks: list[str] = []

    def add(self, id: str, model: Path) -> Path:
        return Path(shutil.copytree(model, self.files / id))


@pytest.fixture(scope="module")
def model(make_tiny_model: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    fuse.save(make_tiny_model(), folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tmp_path)
    hub.add("owner/name", model)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Answers, hub.files, hub.asked, hub.breaks)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        _point(monkeypatch, f"http://127.0.0.1:{server.server_port}", hub.cache)
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _point(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def unplug(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    """A port that nobody listens on, as where there is no network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        _point(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", hub.cache)


def load(id: str = "owner/name", **knobs: Any) -> Loaded:
    return loaders.hub(lambda: iter(()), 0, lambda uri: (Path(), ""), id=id, **knobs)


def refusal(id: str = "owner/name", **knobs: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(id, **knobs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_load_downloads_and_the_second_asks_nothing(hub: Hub) -> None:
    first = load()
    assert (first.lineage.kind, first.lineage.uri, first.lineage.revision) == ("hub", "owner/name", NEW)
    assert any("/resolve/" in path for path in hub.asked)
    hub.asked.clear()
    assert load().lineage == first.lineage and hub.asked == []


def test_a_base_that_is_packed_while_loading_is_another_one(hub: Hub) -> None:
    assert load(quantize={"bits": 8, "group_size": 32}).lineage.revision == f"{NEW} quantised to 8 bits in groups of 32"


def test_what_is_in_the_cache_loads_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load()
    unplug(monkeypatch, hub)
    assert load().lineage.revision == NEW


def test_offline_by_wish_asks_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal() == (
        f"model.id=owner/name: HF_HUB_OFFLINE is set and the model is not in the local cache ({hub.cache}); unset HF_HUB_OFFLINE, "
        "or use model=local model.path=…"
    )
    assert hub.asked == []


def test_no_network_and_no_copy_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch, hub)
    assert refusal().startswith("model.id=owner/name: the hub can't be reached and the model is not in the local cache")


@pytest.mark.parametrize(("revision", "commit"), [("v1", OLD), (OLD, OLD), ("main", NEW)])
def test_a_revision_pins(hub: Hub, revision: str, commit: str) -> None:
    load()
    assert load(revision=revision).lineage.revision == commit
    hub.asked.clear()
    assert load(revision=revision).lineage.revision == commit and hub.asked == []
    assert load().lineage.revision == NEW  # the pinned one did not become the newest


def test_a_wrong_revision_is_named(hub: Hub) -> None:
    assert refusal(revision="v9").startswith("model.revision=v9: owner/name has no such branch, tag or commit on the hub")


def test_a_revision_that_is_not_here_lists_those_that_are(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    load(revision="v1")
    unplug(monkeypatch, hub)
    assert f"the local cache has other revisions alone: {OLD}, v1; take one of them, or connect" in refusal(revision="v2")


@pytest.mark.parametrize("revision", ["../../etc/passwd", "a/../b", "/etc/passwd", "a\x00b", "", "refs//x"])
def test_a_revision_that_is_a_path_is_refused_before_anything_is_read(hub: Hub, revision: str) -> None:
    assert "not a commit, branch or tag" in refusal(revision=revision)
    assert hub.asked == []


@pytest.mark.parametrize("id", ["../x", "a/../b", "/etc/x", "a/b/c", "a\\b", "a--b/c", "a" * 200])
def test_an_id_that_is_a_path_is_refused(hub: Hub, id: str) -> None:
    assert "not a hub id" in refusal(id)
    assert hub.asked == []


def test_a_repository_that_is_not_there(hub: Hub) -> None:
    assert refusal("owner/other").startswith("model.id=owner/other: the hub says no (")


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model-q4.gguf"])
def test_a_repository_without_safetensors_says_so_and_fetches_no_weights(hub: Hub, model: Path, other: str) -> None:
    folder = hub.add("owner/old", model)
    rename_weights(folder, other)
    assert refusal("owner/old") == (
        "model.id=owner/old: no model*.safetensors is there; take a copy of the model that has them, or save it anew with transformers' "
        "save_pretrained"
    )
    assert not any(path.endswith(other) for path in hub.asked)


def rename_weights(folder: Path, to: str) -> None:
    (folder / "model.safetensors").rename(folder / to)
    (folder / "model.safetensors.index.json").unlink()


def test_a_download_that_breaks_off_is_one_line_and_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the tries that the hub's client makes by itself
    hub.breaks += ["model.safetensors"] * 20
    assert refusal().startswith("model.id=owner/name: the download broke off (")
    hub.breaks.clear()
    assert load().lineage.revision == NEW


def test_a_cache_that_can_not_be_written_is_one_line(hub: Hub) -> None:
    hub.cache.write_text("a file")
    assert "can't be downloaded to" in refusal()


def snapshot(hub: Hub) -> Path:
    (found,) = hub.cache.glob("models--owner--name/snapshots/*")
    return found


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_part_of_a_copy_is_completed_and_without_a_network_named(hub: Hub, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    load()
    (snapshot(hub) / gone).unlink()
    with monkeypatch.context() as patch:
        unplug(patch, hub)
        said = refusal()
    assert "the hub can't be reached and the copy in the local cache is a part only: " in said and said.endswith(
        "connect to fetch the rest"
    )
    hub.asked.clear()
    assert load().lineage.revision == NEW
    assert {path for path in hub.asked if "/resolve/" in path} <= {f"/owner/name/resolve/{NEW}/{gone}"}


def test_a_copy_that_another_program_began_is_a_part_of_one(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers fetches single files, and leaves no list of what there should be."""
    folder = hub.cache / "models--owner--name"
    shutil.copytree(model, folder / "snapshots" / NEW, ignore=shutil.ignore_patterns("model.safetensors"))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(NEW)
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        said = refusal()
    assert said == (
        "model.id=owner/name: HF_HUB_OFFLINE is set and the copy in the local cache is a part only: "
        "1 of its 1 files of weights are missing, model.safetensors among them; unset HF_HUB_OFFLINE to fetch the rest"
    )
    assert load().lineage.revision == NEW


def test_a_shard_that_is_missing_is_named(model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "sharded"))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / "model.safetensors").rename(folder / names[0])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    with pytest.raises(ModelError, match=rf"no whole model lies there: 1 of its 2 files of weights are missing, {names[1]} among them"):
        loaders.local(lambda: iter(()), 0, lambda uri: (Path(), ""), path=str(folder))


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.gguf", "consolidated.safetensors"])
def test_a_local_folder_of_another_format_names_the_file(model: Path, tmp_path: Path, other: str) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "other"))
    rename_weights(folder, other)
    with pytest.raises(ModelError, match=rf"its weights are in {other}, and only model\*\.safetensors can be loaded; take a copy"):
        loaders.local(lambda: iter(()), 0, lambda uri: (Path(), ""), path=str(folder))


def test_a_local_folder_needs_no_network(model: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    unplug(monkeypatch, hub)
    loaded = loaders.local(lambda: iter(()), 0, lambda uri: (Path(), ""), path=str(model))
    assert loaded.lineage.kind == "local" and hub.asked == []
