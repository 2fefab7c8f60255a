"""What to type next, in words for the terminal: how to look at a run, and how to serve what it released."""

from forge.config import Config
from forge.tracking import store


def next_steps(config: Config, run_id: str, released: bool) -> str:
    lines = [look_at(config.tracking.uri, run_id)]
    if released:
        name = f"models:/{config.release.name}@{config.release.alias}"
        body = '{"prompt": "shutil.copy(src, dst)", "max_tokens": 60}'
        lines += [
            f"Serve it:    {store.prefix(config.tracking.uri)}mlflow models serve -m {name} --env-manager local --port 5001",
            f"Ask it:      curl http://127.0.0.1:5001/invocations -H 'Content-Type: application/json' -d '{body}'",
        ]
    return "\n".join(lines)


def look_at(configured: str | None, run_id: str) -> str:
    command, address = store.page(configured, run_id)
    return f"Look at it:  {command}\n             {address}" if command else f"Look at it:  {address}"
