"""HTML by small functions: whatever is not already `Html` is escaped, so that a string of a run cannot be markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from synaptome.report.text import clean

VOID = frozenset({"meta", "link", "img", "input"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def escaped(value: object) -> Html:
    """`value` as text, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(html.escape(clean(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """The parts in a row, each escaped unless it is `Html`."""
    return Html(between.join(escaped(part) for part in parts))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element; `class_` and `http_equiv` stand for the attributes `class` and `http-equiv`."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escaped(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>" + ("" if name in VOID else f"{join(children)}</{name}>"))


def preformatted(text: str) -> Html:
    """Lines kept as they are, in a block that scrolls sideways by itself."""
    return tag("pre", Html(html.escape(text)), tabindex="0")


def table(
    headings: Sequence[object], rows: Iterable[Sequence[object]], label: str, text: Iterable[str] = (), class_: str = ""
) -> Html:
    """A table in a container that scrolls sideways by itself; the first cell of a row heads it.

    Args:
        headings: one a column.
        rows: the cells.
        label: what the table holds, for those who hear the page.
        text: headings of columns that hold text; all others are aligned as numbers.
        class_: a further class of the container.
    """
    kinds = ["text" if heading in set(text) else "number" for heading in headings]
    headed = zip(headings, kinds, strict=True)
    head = tag("tr", *(tag("th", heading, scope="col", class_=kind) for heading, kind in headed))
    lines = [
        tag(
            "tr",
            tag("th", cells[0], scope="row", class_=kinds[0]),
            *(tag("td", cell, class_=kind) for cell, kind in zip(cells[1:], kinds[1:], strict=True)),
        )
        for cells in rows
    ]
    body = tag("table", tag("thead", head), tag("tbody", *lines))
    return tag("div", body, class_=f"scroll {class_}".strip(), role="region", aria_label=label, tabindex="0")
