"""The pictures of a sweep, from plain data: a second or two for 200 children. No pyplot and no rcParams, which are global."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from forge.reports import sweep_grid, sweep_key, sweep_lines, sweep_parallel
from forge.reports.sweep_children import Child, measured, varying


def pictures(children: Sequence[Child], importances: Mapping[str, float] | None = None) -> dict[str, Figure]:
    """Those that make sense for this sweep, by file name. `importances`: of swept keys, where a search has measured them.

    Without two children that have a loss there is nothing to compare, and only the curves are left; without a curve, nothing.
    """
    keys, out = varying(children), {}
    if keys and len(measured(children)) > 1:
        if len(keys) == 1:
            out["sweep/loss_by_key.png"] = sweep_key.draw(children)
        else:
            out["sweep/parallel_coordinates.png"] = sweep_parallel.draw(children, importances)
            out["sweep/heat_map.png"] = sweep_grid.draw(children, importances)
    if sweep_lines.has_curve(children):
        out["sweep/validation_curves.png"] = sweep_lines.overlay(children)
    if importances:
        out["sweep/importances.png"] = sweep_lines.importance(importances)
    return out
