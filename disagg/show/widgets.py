"""Parts of all panels. A panel computes nothing itself, and no Output widget draws."""

import textwrap
from collections.abc import Iterator

import ipywidgets

from disagg.plan.link import Link

#: Bytes a second, each about twice the previous; None is the link without a dial.
SPEEDS = (2e6, 5e6, 10e6, 20e6, 50e6, 100e6, 200e6, None)

LINES, COLUMNS = 4, 110
Dial = Link | str | float | tuple | None  # what `Config.link` takes


def link_name(link: Dial) -> str:
    """2e6 as "2 MB/s"; a Link, a preset's name, or None for no limit."""
    match link:
        case None:
            return "no limit"
        case str():
            return link
        case tuple():  # of an engine: a link for each hop, equal if one dial set them
            return " then ".join(dict.fromkeys(map(link_name, link)))
        case Link(compute_ratio=float() | int() as ratio):
            return f"c/x = {ratio:g}"
        case Link():
            return link_name(link.bandwidth) if link.dialled else "no limit"
        case _:
            return f"{link / 1e6:{'.3g' if link < 1e9 else 'g'}} MB/s"


def no_math(text: str) -> str:
    """Text changed so that JupyterLab does not typeset it as a formula."""
    return text.replace("$", "\N{FULLWIDTH DOLLAR SIGN}").replace("\\", "\\\N{WORD JOINER}")


def row(*widgets: ipywidgets.Widget) -> ipywidgets.HBox:
    """Widgets side by side, or below each other without room, so that no label is cut."""
    for widget in widgets:
        if isinstance(widget, ipywidgets.Button):
            widget.layout.flex = "0 0 auto"
    return ipywidgets.HBox(widgets, layout=ipywidgets.Layout(flex_flow="row wrap"))


def parts_of(widget: ipywidgets.Widget) -> Iterator[ipywidgets.Widget]:
    for child in getattr(widget, "children", ()):
        yield from parts_of(child)
    yield widget


def close_widgets(*widgets: ipywidgets.Widget) -> None:
    """Closes widgets with their layout and style, which would stay in the kernel."""
    for widget in widgets:
        for part in (getattr(widget, "style", None), getattr(widget, "layout", None), widget):
            if part is not None:
                part.close()


class InCell:
    """A cell's output: `panel`, and a sentence in its place without a kernel."""

    panel: ipywidgets.Widget

    def close(self) -> None:
        """Closes every part; a second call does nothing."""
        close_widgets(*parts_of(self.panel))

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict | tuple[dict, dict]:
        return {**self.panel._repr_mimebundle_(), "text/plain": repr(self)}


def tight_labels(count: int) -> list[ipywidgets.Label]:
    """Lines of plain text: a Label shows tags as text and does not wrap."""
    return [ipywidgets.Label(layout=ipywidgets.Layout(height="22px", margin="0 2px")) for _ in range(count)]


class TextLines:
    def __init__(self) -> None:
        self._lines, self.box = tight_labels(LINES), ipywidgets.VBox()

    def say(self, text: str) -> None:
        lines = textwrap.wrap(no_math(text), COLUMNS, max_lines=LINES, placeholder=" …")
        for label, line in zip(self._lines, lines, strict=False):
            label.value = line
        self.box.children = self._lines[: len(lines)]

    def close(self) -> None:
        close_widgets(*self._lines, self.box)

    def __str__(self) -> str:
        return " ".join(label.value for label in self.box.children)
