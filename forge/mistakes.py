"""Hydra's and OmegaConf's complaints about a command line, in one line of forge's own."""

import re

from forge import binding

_OR = {"model": "; or give a model's folder, or a registered one as models:/NAME@ALIAS"}  # what else than an option is taken


def in_our_words(error: Exception) -> str:
    """Hydra's message in one line, with the nearest valid name where an option does not exist."""
    lines = [re.sub(r"\s+", " ", line).strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Set the environment", "Config search path", "provider="))]
    option = re.search(r"Could not find '(.+)/(.+)'", lines[0])
    if option:
        group, name = option.groups()
        if group == "hydra/launcher":
            return f"{group}={name}: there is no such launcher{binding.nearest(name, lines[2:])}; for jobs side by side here, sweep.jobs=N"
        return f"{group}={name}: there is no such option{binding.nearest(name, lines[2:])}{_OR.get(group, '')}"
    if found := re.match(r"Error merging 'hydra/launcher/(\w+)' with schema", lines[0]):
        return f"hydra/launcher={found[1]}: Hydra's plugin of this name is installed and gets in the way; uninstall it, forge needs none"
    override = getattr(error, "override", None)
    if override:
        return f"{override.removeprefix('++')}: not an override; write key=value, and quote what holds spaces or brackets"
    if lines[0].startswith("Could not override 'experiment'"):
        return "experiment=…: write +experiment=…, with a plus: the defaults hold none"
    return "; ".join(lines).replace("'++", "'")
