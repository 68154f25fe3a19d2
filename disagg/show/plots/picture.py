"""A drawing and the sentence that says what it shows."""

import base64
import io
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from disagg.trace.files import whole

DPI = 200  # shown 900 points wide: two pixels a point, sharp on both kinds of screen


@dataclass
class Picture:
    """What a cell shows: a PNG with alt text, and `finding` as its plain text."""

    figure: Figure
    alt: str
    finding: str

    def png(self, fast: bool = False) -> bytes:
        """The PNG with a palette, a third of the size; the same data give the same bytes. `fast`: larger and coarser,
        for a view that follows a slider."""
        full, small = io.BytesIO(), io.BytesIO()
        if fast:
            self.figure.savefig(full, format="png", dpi=DPI // 2, pil_kwargs={"compress_level": 1})
            return full.getvalue()
        self.figure.savefig(full, format="png", dpi=DPI)
        image = Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        image.save(small, format="png", optimize=True, dpi=(DPI, DPI))
        return small.getvalue()

    def save(self, path: str | Path) -> None:
        """Writes the PNG, whole or not at all. FileError."""
        with whole(path) as file:
            file.write(self.png())

    def as_html(self) -> str:
        source, width = base64.b64encode(self.png()).decode(), round(100 * self.figure.get_figwidth())
        return f'<img alt="{escape(self.alt)}" width="{width}" src="data:image/png;base64,{source}">'

    def __repr__(self) -> str:
        return self.finding

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.finding}
        return data, {"image/png": {"alt": self.alt, "width": round(100 * self.figure.get_figwidth())}}
