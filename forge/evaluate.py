"""python -m forge.evaluate model=MODEL [base=MODEL] [data=…] [evaluation.…=…] : measure a model, and train nothing.

    python -m forge.evaluate model=models:/forge-notes@champion data=instructions
    python -m forge.evaluate model=FOLDER base=FOLDER data=folder data.path=~/notes     both models, in two columns
    python -m forge.evaluate run=RUN                                                    a run's best checkpoint and its base, on its data
    python -m forge.evaluate run=RUN evaluation.retention=true evaluation.answers=200
    python -m forge.evaluate model=FOLDER evaluation.harness.tasks=[arc_easy]           lm-evaluation-harness (the extra lm-eval)

Takes the keys of forge.train: data decides the text, and conf/evaluation how much of it and what is asked. Measures loss, perplexity and
bits a byte by source on the full validation set and on the test rows; exact match, F1, BLEU and ROUGE of answers to held-out questions;
how many of 40 built-in instructions are followed. Logs a run, which forge.compare takes. `allowed_targets=[mypackage.]` where a recorded
run's configuration calls functions of other packages. Of a run with other data settings than its own, rows that it was trained on are
counted, in a warning and in the tag forge.not_held_out. Costs loading each model, a pass over that text, and the answers.
"""

import shlex
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from forge import jobs, keys, paths
from forge.config import GROUPS, Config
from forge.entry import entry
from forge.errors import ConfigError, Stopped, TrackingError
from forge.imports import lasting

if TYPE_CHECKING:
    from forge.evaluation.measure import Measured, Which
    from forge.tracking.reader import Seen

_ONE = "evaluate looks at one configuration"
KIND = {"forge.kind": "evaluation"}
_SOURCE = "mlflow.source.name"  # the command, as MLflow shows it


def main(argv: list[str]) -> int:
    """The exit code: 0, the error's own, or 128 + the signal's number."""
    return entry(_evaluate, argv, interrupted="interrupted before a run was opened")


def _evaluate(argv: list[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    run, rest = _taken("run", argv)
    base, rest = _taken("base", rest)
    if run is not None:
        if named := [word for word in (*rest, *([f"base={base}"] if base else [])) if word.startswith(("model", "base="))]:
            raise ConfigError(f"{named[0]}: run=RUN has its own model and base; leave it out")
        return _of_a_run(run, rest, argv)
    if not any(word.startswith(("model=", "model/")) for word in rest):
        raise ConfigError("which model? Write model=models:/NAME@ALIAS, model=FOLDER, or run=RUN")
    if adapter := [word for word in rest if word.startswith("adapter")]:
        raise ConfigError(f"{adapter[0]}: a model is measured as it is; leave it out, or train with python -m forge.train")
    config = jobs.single(rest, _ONE)
    if config is None:
        return 0
    configs: dict[Which, Config] = {}
    if base is not None:
        other = jobs.single([*(word for word in rest if not word.startswith(("model=", "model."))), f"model={base}"], _ONE)
        assert other, "the model's own command line was no question to Hydra"
        configs["base"] = other
    _of_models({**configs, "final": config}, argv)
    return 0


def _taken(key: str, argv: list[str]) -> tuple[str | None, list[str]]:
    """The value of a key that is forge.evaluate's own, and the other words."""
    found = [word.partition("=")[2] for word in argv if word.startswith(f"{key}=")]
    if len(found) > 1 or "" in found:
        raise ConfigError(f"{key}=: give one {'run' if key == 'run' else 'model'}")
    return (found[0] if found else None), [word for word in argv if not word.startswith(f"{key}=")]


# ---- what is measured ---------------------------------------------------------------------------------------------------


def _of_models(configs: "dict[Which, Config]", typed: list[str]) -> None:
    """Each as it is, one after the other."""
    paths.require_writable()
    config = configs["final"]
    with lasting():
        from forge.assemble import assemble
        from forge.evaluation.harness import require
        from forge.evaluation.measure import measure
        from forge.tracking import registry

    require(config.evaluation.harness)
    registry.require(configs.values())

    def measured(which: "Which", config: Config) -> "Measured":
        print(f"measuring {'the base' if which == 'base' else 'the model'}", flush=True)
        parts = assemble(replace(config, adapter=_as_it_is), partial(registry.fetch, config.tracking.uri))
        return measure(parts, config.evaluation)

    _recorded(config, typed, lambda: {which: measured(which, each) for which, each in configs.items()}, {})


def _of_a_run(wanted: str, overrides: list[str], typed: list[str]) -> int:
    """Of a recorded run the best checkpoint, and the model that it started from."""
    with lasting():
        from forge import pins
        from forge.assemble import assemble, store_of
        from forge.evaluation.harness import require
        from forge.evaluation.heldout import not_held_out
        from forge.evaluation.measure import measure
        from forge.tracking import reader, registry
        from forge.tracking.recorded import recorded
        from forge.training import checkpoint

    given = keys.tree(overrides)
    if groups := [word for word in overrides if "." not in word.partition("=")[0] and word.partition("=")[0] in GROUPS]:
        raise ConfigError(f"{groups[0]}: the run's own configuration is taken; set keys of it, such as evaluation.answers=200")
    if "path" in given.get("data", {}):
        raise ConfigError("data.path: the run's sources have their paths by now; set data.sources.NAME.source.path")
    tracking = given.get("tracking", {})
    client = reader.opened(tracking.get("uri"))
    seen = reader.find(client, wanted)
    allowed = given.get("allowed_targets") or []
    words = [word for word in overrides if not word.startswith("allowed_targets")]
    own, config = (recorded(client, seen, [*pins.exact(seen), *more], allowed) for more in ((), words))
    config = replace(config, tracking=replace(config.tracking, run_name=tracking.get("run_name"), parent_run=None))
    require(config.evaluation.harness)
    _require_checkpoints(seen)
    paths.require_writable()
    registry.require([config])
    tags = {"forge.evaluates": seen.id}
    if why := not_held_out(own, config, seen.tags.get("forge.data_digest", "")):
        print(f"WARNING: {why}", flush=True)
        tags["forge.not_held_out"] = why

    def both() -> "dict[Which, Measured]":
        parts = assemble(config, partial(registry.fetch, config.tracking.uri))
        pins.require_own(seen, parts)
        before = measure(parts, config.evaluation)
        best = store_of(config, parts, seen.id).best()  # only now: a run that trains meanwhile may remove the one of before
        if best is None:
            raise TrackingError(f"run {seen.name} ({seen.id[:8]}): no checkpoint of it was evaluated, so none can be chosen")
        print(f"run {seen.name} ({seen.id[:8]}), {best.why}", flush=True)
        checkpoint.load_weights(parts.loaded.model, best.path)
        return {"base": before, "final": measure(parts, config.evaluation)}

    _recorded(config, typed, both, tags)
    return 0


def _require_checkpoints(run: "Seen") -> None:
    from forge.training.checkpoint import steps

    if not steps(paths.checkpoints(run.id)):
        folder = paths.checkpoints(run.id)
        raise TrackingError(f"run {run.name} ({run.id[:8]}): no checkpoint lies in {folder}; go where it ran, or name one run of a sweep")


def _as_it_is(model: Any) -> None:
    """No adapter."""


# ---- telling ------------------------------------------------------------------------------------------------------------


def _recorded(config: Config, typed: list[str], measured: Any, tags: dict[str, str]) -> None:
    """measured() -> {which: Measured}, in a run of its own."""
    from forge.evaluation import samples
    from forge.evaluation.measure import record
    from forge.models import device
    from forge.signals import Interrupts
    from forge.tracking.next_steps import look_at
    from forge.tracking.run import run as open_run
    from forge.training.evaluate import forgetting

    tags = KIND | tags | device.describe() | {_SOURCE: shlex.join(["python", "-m", "forge.evaluate", *typed])}
    with Interrupts(), open_run(config.tracking, f"evaluation {config.identity}", tags=tags) as run:
        print(f"run {run.name} ({run.id})", flush=True)
        run.text(config.yaml(), "config/config.yaml")
        run.text("\n".join(typed), "config/overrides.txt")
        models = _unless_stopped(measured)
        final = models["final"]
        run.data(final.data.ledger, {name: each.source for name, each in config.data.sources.items()})
        run.tags({"forge.full_digest": final.data.full_digest, **{f"forge.{which}_model": each.lineage for which, each in models.items()}})
        for which, each in models.items():
            record(run, which, each, config.evaluation)
        if "base" in models and models["base"].data.full_digest == final.data.full_digest:
            before = {key.replace("base/", "final/", 1): value for key, value in models["base"].metrics("base").items()}
            run.summary(forgetting(final.full.metrics, before))
        rows = [{"model": which, **row} for which, each in models.items() for row in samples.rows([(0, one) for one in each.samples])]
        if rows:
            run.table({name: [row[name] for row in rows] for name in rows[0] if name != "step"}, "evaluation/samples.json")
    _print(models)
    if "base" in models:
        print(f"\nHow sure:    python -m forge.compare {run.id[:8]}@base {run.id[:8]}")
    print(look_at(config.tracking.uri, run.id))


def _unless_stopped(measured: Any) -> Any:
    try:
        return measured()
    except Stopped as stop:
        stop.way_on = "the same command measures anew"
        raise


def _print(models: "dict[Which, Measured]") -> None:
    from forge.evaluation.measure import table

    console = Console(highlight=False)
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for cell in ("", *("base" if which == "base" else "model" for which in models)):
        shown.add_column(cell)
    for name, values in table(models):
        shown.add_row(name, *(f"{values[which]:.4g}" if which in values else "–" for which in models))
    console.print()
    console.print(shown)
    if "base" in models and models["base"].data.ledger.tokenizer_digest != models["final"].data.ledger.tokenizer_digest:
        console.print("The two tokenizers differ: compare bits_per_byte and answers, not loss and perplexity.", style="dim")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
