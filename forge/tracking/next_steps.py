"""What to type next, in words for the terminal: how to look at a run, to go on from what it released, and to talk to it."""

from mlflow import MlflowClient

from forge.config import Config
from forge.tracking import store


def next_steps(config: Config, run_id: str, released: bool) -> str:
    """`released`: a version was registered, by this run or, where it is a sweep's or a chain's parent, by one of its children."""
    lines = [look_at(config.tracking.uri, run_id)]
    if not released:
        return "\n".join(lines)
    prefix, client = store.prefix(config.tracking.uri), store.connect(config.tracking.uri)
    tags = client.get_run(run_id).data.tags
    if maker := tags.get("best/run_id"):
        run_id, tags = maker, client.get_run(maker).data.tags
    name = _version(client, config.release.name, run_id) or f"models:/{config.release.name}@{config.release.alias}"
    if tags.get("forge.template_digest"):
        body = '{"messages": [{"role": "user", "content": "What does `shutil.copy` do?"}], "max_tokens": 60}'
        lines.append(f"Talk to it:  python -m forge.chat model={name}")
    else:
        body = '{"prompt": "shutil.copy(src, dst)", "max_tokens": 60}'
        lines.append(f"Instruct it: python -m forge.train +experiment=ift model={name}")
    return "\n".join(
        [
            *lines,
            f"Serve it:    python -m forge.serve model={name}",
            f"             {prefix}mlflow models serve -m {name} --env-manager local --port 5001",
            f"Ask it:      curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{body}'",
        ]
    )


def look_at(configured: str | None, run_id: str) -> str:
    command, address = store.page(configured, run_id)
    return f"Look at it:  {command}\n             {address}" if command else f"Look at it:  {address}"


def _version(client: MlflowClient, name: str, run_id: str) -> str | None:
    """The newest version of the name that the run registered."""
    found = [int(one.version) for one in client.search_model_versions(f"run_id = '{run_id}'") if one.name == name]
    return f"models:/{name}/{max(found)}" if found else None
