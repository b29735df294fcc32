"""A table of results: one value, written as csv, markdown and HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Value = str | int | float | None
NONE = "-"


@dataclass(frozen=True)
class Column:
    """A heading, and how its numbers are shown (a format of Python); csv has them in full."""

    heading: str
    shown: str = ""

    def text(self, value: Value) -> str:
        if value is None:
            return NONE
        return value if isinstance(value, str) else format(value, self.shown)


@dataclass(frozen=True)
class Table:
    """Rows under headings.

    Attributes:
        name: of the files.
        about: one or two sentences: what a row is, and how its numbers are defined.
    """

    name: str
    title: str
    about: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), self.name

    def as_csv(self, *, origin: str) -> str:
        """Numbers to six digits; where it comes from stands in lines behind a # at the top."""
        out = io.StringIO()
        out.write(f"# {self.title}\n# {origin}\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(column.heading for column in self.columns)
        writer.writerows([_plain(value) for value in row] for row in self.rows)
        return out.getvalue()

    def as_markdown(self, *, origin: str) -> str:
        """With its sentences above and its origin below."""
        lines = [
            f"# {self.title}",
            "",
            self.about,
            "",
            _piped(column.heading for column in self.columns),
            _piped("---:" if column.shown else "---" for column in self.columns),
            *(_piped(self._texts(row)) for row in self.rows),
            "",
            f"*{origin}*",
        ]
        return "\n".join(lines) + "\n"

    def as_html(self) -> str:
        """The table alone."""
        heads = "".join(self._cell("th", c, html.escape(c.heading)) for c in self.columns)
        rows = "\n".join(
            "<tr>"
            + "".join(
                self._cell("td", column, html.escape(text))
                for column, text in zip(self.columns, self._texts(row), strict=True)
            )
            + "</tr>"
            for row in self.rows
        )
        body = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
        return f'<div class="wide"><table>\n{body}\n</table></div>'

    def _texts(self, row: Sequence[Value]) -> list[str]:
        return [column.text(value) for column, value in zip(self.columns, row, strict=True)]

    def _cell(self, tag: str, column: Column, text: str) -> str:
        kind = ' class="number"' if column.shown else ""
        return f"<{tag}{kind}>{text}</{tag}>"


def _plain(value: Value) -> str | int:
    if value is None:
        return ""
    return format(value, ".6g") if isinstance(value, float) else value


def _piped(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
