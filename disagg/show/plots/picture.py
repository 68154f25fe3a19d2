"""A drawing and the sentence that says what it shows; colours, hatches and fonts that every drawing shares.

No pyplot anywhere: widget callbacks may run on any thread, and pyplot's current figure is one for all of them.
"""

import base64
import io
from dataclasses import dataclass

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from disagg.show.plots.palette import COLOURS, HATCHES  # noqa: F401 - every drawing takes them from here
from disagg.trace.files import whole

INK = "#222222"
FAINT = (1.0, 1.0, 1.0, 0.6)  # of hatches and ticks on a colour

WIDTH_IN, DPI = 9.0, 200  # shown 900 points wide: two pixels a point, sharp on both kinds of screen
FONT_PT, PROJECTOR_PT = 12, 18


@dataclass
class Picture:
    """What a cell shows: a PNG with alt text, and `finding` as its plain text."""

    figure: Figure
    alt: str
    finding: str

    def png(self) -> bytes:
        """The PNG with a palette, a third of the size; the same data give the same bytes."""
        full, small = io.BytesIO(), io.BytesIO()
        self.figure.savefig(full, format="png", dpi=DPI)
        image = Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        image.save(small, format="png", optimize=True, dpi=(DPI, DPI))
        return small.getvalue()

    def save(self, path) -> None:
        """Writes the PNG, whole or not at all. FileError."""
        with whole(path) as file:
            file.write(self.png())

    def __str__(self) -> str:
        return self.finding

    def __repr__(self) -> str:
        return self.finding

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.finding}
        return data, {"image/png": {"alt": self.alt, "width": round(100 * self.figure.get_figwidth())}}


def new_figure(height_in: float, width_in: float = WIDTH_IN) -> Figure:
    """A white figure with a canvas of its own; 100 points an inch."""
    figure = Figure(figsize=(width_in, height_in), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def font_size(projector: bool) -> int:
    return PROJECTOR_PT if projector else FONT_PT


def plain_axes(axes, size: float) -> None:
    """Only what is needed to read a value: bottom line, ticks of the right size, pale grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=size, colors=INK, length=4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
