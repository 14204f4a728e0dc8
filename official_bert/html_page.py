"""One self-contained HTML page of tables and pictures; it refers to no other file."""

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from official_bert import versions
from tfrecords import files

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #222; }
div { overflow-x: auto; }
table { border-collapse: collapse; margin: 1em 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .5em; }
td, th { border-bottom: 1px solid #ccc; padding: .3em 1em .3em 0; text-align: left;
         overflow-wrap: anywhere; min-width: 6em; }
td.value, th.value { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1.5em 0; } img { max-width: 100%; } code { background: #f3f3f3; }
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose rows are a name and values.

    Attributes:
        rows: cells; the first of each row is its name.
        header: cells above them, or none.
        caption: what the table shows, or empty.
    """

    rows: Sequence[Sequence[str]]
    header: Sequence[str] = ()
    caption: str = ""


def png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def write(
    path: str,
    title: str,
    introduction: str,
    tables: Sequence[Table],
    pictures: Mapping[str, Figure],
) -> None:
    """Writes the page, atomically.

    Args:
        path: the HTML file.
        title: heading of the page.
        introduction: what was run, in a paragraph.
        tables: the tables.
        pictures: figures by caption.
    """
    title, introduction, footer = map(html.escape, (title, introduction, versions.in_a_line()))
    content = "".join(map(_table, tables)) + "".join(
        _picture(html.escape(caption), figure) for caption, figure in pictures.items()
    )
    files.write_text(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{introduction}</p>{content}"
        f"<p><small>{footer}</small></p></html>\n",
    )


def _table(table: Table) -> str:
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    header = _cells(table.header, "th") if table.header else ""
    rows = "".join(_cells(row, "td") for row in table.rows)
    return f"<div><table>{caption}{header}{rows}</table></div>"


def _cells(row: Sequence[str], tag: str) -> str:
    name, *values = map(html.escape, row)
    cells = "".join(f'<{tag} class="value">{value}</{tag}>' for value in values)
    return f"<tr><{tag}>{name}</{tag}>{cells}</tr>"


def _picture(caption: str, figure: Figure) -> str:
    address = "data:image/png;base64," + base64.b64encode(png(figure)).decode("ascii")
    return (
        f'<figure><img src="{address}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )
