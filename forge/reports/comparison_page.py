"""A comparison as files: one HTML page that needs nothing else, and the losses of the documents as CSV."""

import base64
import csv
import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from forge.reports.comparison import Table, Verdict
from forge.reports.palette import THEMES

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{ title }}</title>
<style>
:root { color-scheme: light dark; {% for name, value in light.items() %}--{{ name }}: {{ value }}; {% endfor %}}
@media (prefers-color-scheme: dark) { :root { {% for name, value in dark.items() %}--{{ name }}: {{ value }}; {% endfor %}} }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
.alarm { border-left: 4px solid var(--alarm); color: var(--alarm); padding: .3rem .8rem; margin: .4rem 0 }
.verdict { border-left: 4px solid var(--train); padding: .3rem .8rem; margin: .4rem 0 } .verdict b { text-transform: uppercase }
img { width: 100%; margin-top: 1rem } .scroll { overflow-x: auto } p.note { color: var(--grey); margin: .4rem 0 }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { color: var(--grey); font-weight: 600 }
</style></head><body>
<h1>{{ title }}</h1>
{% for alarm in alarms %}<p class="alarm">{{ alarm }}</p>
{% endfor %}{% for each in verdicts %}<p class="verdict"><b>{{ each.word }}</b> · {{ each.sentence }}</p>
{% endfor %}{% if note %}<p class="note">{{ note }}</p>
{% endif %}<picture><source media="(prefers-color-scheme: dark)" srcset="{{ pictures.dark }}"><img src="{{ pictures.light }}" alt="
{%- for each in verdicts %}{{ each.sentence }}. {% endfor %}"></picture>
{% for table in tables %}<h2>{{ table.title }}</h2>
{% if table.rows %}<div class="scroll"><table><thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% if table.note %}<p class="note">{{ table.note }}</p>{% endif %}
{% endfor %}</body></html>
"""


def page(
    title: str, verdicts: Sequence[Verdict], note: str, alarms: Sequence[str], tables: Sequence[Table], figures: Mapping[str, Figure]
) -> str:
    """note: what the verdicts don't say. figures: of each theme."""
    from jinja2 import Environment

    pictures = {theme: f"data:image/png;base64,{base64.b64encode(png(figure)).decode()}" for theme, figure in figures.items()}
    styles = {theme: palette.named for theme, palette in THEMES.items()}
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(title=title, verdicts=verdicts, alarms=alarms, note=note, tables=tables, pictures=pictures, **styles)


def png(figure: Figure) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format="png")
    return held.getvalue()


def table(first: str, verdicts: Sequence[Verdict]) -> str:
    """A line a document and comparison; losses are sums, the means of a group's runs, and `difference` is of the second to the first."""
    held = io.StringIO()
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(["first", "second", "unit", "source", "document", "size", "first_loss", "second_loss", "difference"])
    for each in verdicts:
        if each.shared is None:
            continue
        shared = each.shared
        one_N, other_N = (part.mean(axis=0) for part in (shared.losses_RN[: each.first_runs], shared.losses_RN[each.first_runs :]))
        for n, name in enumerate(shared.names):
            numbers = [f"{value:.9g}" for value in (shared.sizes_N[n], one_N[n], other_N[n], other_N[n] - one_N[n])]
            writer.writerow([first, each.label, shared.unit, shared.sources[shared.source_N[n]], name, *numbers])
    return held.getvalue()
