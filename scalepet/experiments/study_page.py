"""A report as one html page that needs no network: figures and tables are inside of it."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from scalepet.experiments.table import Table

_STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --text: #222; --soft: #6b6b6b; --line: #e2e2de;
  --card: #fff; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --back: #17181a; --text: #e4e4e1; --soft: #a0a09c;
  --line: #34363a; --card: #1f2124; --accent: #6cb8e6; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--back); color: var(--text); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
nav { position: sticky; top: 0; z-index: 2; display: flex; gap: 1.2rem; overflow-x: auto;
  padding: .7rem max(1.2rem, calc(50vw - 36rem)); background: var(--back);
  border-bottom: 1px solid var(--line); white-space: nowrap; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
main { max-width: 74rem; margin: 0 auto; padding: 1.5rem 1.2rem 5rem; }
h1 { font-size: 2rem; margin: 1rem 0 .3rem; } h2 { margin: 3.2rem 0 .6rem; }
h3 { margin: 2rem 0 .3rem; font-size: 1.05rem; } p, li { max-width: 48rem; }
.origin, figcaption, .about { color: var(--soft); font-size: .9rem; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0; } figcaption { margin-top: .5rem; max-width: 48rem; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px;
  border: 1px solid var(--line); }
figure img.narrow { max-width: 44rem; }
.wide { overflow-x: auto; max-height: 42rem; border: 1px solid var(--line); border-radius: 6px;
  background: var(--card); }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { padding: .38rem .7rem; text-align: left; vertical-align: top; white-space: nowrap; }
td:last-child, .reasons td { white-space: normal; }
th { position: sticky; top: 0; background: var(--card); box-shadow: inset 0 -1px var(--line);
  font-weight: 600; }
tbody tr:nth-child(even) { background: color-mix(in srgb, var(--line) 30%, transparent); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: var(--accent); margin: 1rem 0 .5rem; }
code { font-size: .9em; }
""".strip()


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Attributes:
        name: of its files.
        caption: what it shows and how that is defined.
        inches: width and height.
        draw: draws it on an empty figure.
    """

    name: str
    caption: str
    inches: tuple[float, float]
    draw: Callable[[Figure], None]


@dataclass(frozen=True)
class Section:
    """A part of a report: sentences, then figures, then tables.

    Attributes:
        name: what the page's navigation calls it.
        is_folded: whether the tables are shown only when asked for.
    """

    name: str
    title: str
    sentences: Sequence[str]
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    is_folded: bool = False

    @property
    def anchor(self) -> str:
        return self.name.lower().replace(" ", "-")


def render(
    title: str, sections: Sequence[Section], *, origin: str, drawings: dict[str, bytes]
) -> str:
    """The page.

    Args:
        origin: commits, seeds and command, beside every figure and table.
        drawings: name of a picture -> its SVG.
    """
    links = "".join(f'<a href="#{s.anchor}">{html.escape(s.name)}</a>' for s in sections)
    body = "\n".join(_section(section, origin, drawings) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{_STYLE}
</style>
</head>
<body>
<nav>{links}</nav>
<main>
<h1>{html.escape(title)}</h1>
<p class="origin">{html.escape(origin)}</p>
{body}
</main>
</body>
</html>
"""


def _section(section: Section, origin: str, drawings: dict[str, bytes]) -> str:
    parts = [f'<section id="{section.anchor}">', f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(sentence)}</p>" for sentence in section.sentences]
    parts += [_figure(picture, drawings[picture.name], origin) for picture in section.pictures]
    tables = "\n".join(_table(table, origin) for table in section.tables)
    if tables and section.is_folded:
        tables = f"<details><summary>Show the tables</summary>\n{tables}\n</details>"
    return "\n".join([*parts, tables, "</section>"])


def _figure(picture: Picture, drawing: bytes, origin: str) -> str:
    """As an image, not as elements: the ids of two drawings would meet in one page."""
    data = base64.b64encode(drawing).decode()
    caption = html.escape(picture.caption)
    narrow = ' class="narrow"' if picture.inches[0] < 9 else ""
    return (
        f'<figure id="figure-{picture.name}"><img{narrow} alt="{caption}"'
        f' src="data:image/svg+xml;base64,{data}">\n'
        f"<figcaption>{caption}"
        f' <a href="figures/{picture.name}.png">png</a>'
        f' <a href="figures/{picture.name}.svg">svg</a><br>{html.escape(origin)}</figcaption>'
        "</figure>"
    )


def _table(table: Table, origin: str) -> str:
    return (
        f'<h3 id="table-{table.name}">{html.escape(table.title)}</h3>\n'
        f'<p class="about">{html.escape(table.about)}</p>\n{table.as_html()}\n'
        f'<p class="origin">{html.escape(origin)}'
        f' <a href="tables/{table.name}.csv">csv</a>'
        f' <a href="tables/{table.name}.md">md</a></p>'
    )
