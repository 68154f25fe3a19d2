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

#: Light and dark change places, hues stay: a white drawing on a dark page.
_DARK = "filter:invert(.94) hue-rotate(180deg) brightness(1.12)"
_IN_DARK = '[data-jp-theme-light="false"]'
_ABOVE = ".jp-OutputArea-child:has(+.jp-OutputArea-child .picture-says) img"
STYLE = (
    "<style>.picture-says{max-width:900px;font-size:.92em;line-height:1.35;margin:0 0 .6em}"
    f"{_IN_DARK} {_ABOVE},{_IN_DARK} img.picture{{{_DARK}}}</style>"
)


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
        return f'<img class="picture" alt="{escape(self.alt)}" width="{width}" src="data:image/png;base64,{source}">'

    def __repr__(self) -> str:
        return self.finding

    def _ipython_display_(self) -> None:
        """The PNG, which every front end shows, and below it the sentence. HTML with both would need the PNG in it,
        which nbval would compare, and GitHub leave out."""
        from IPython.display import display

        data, metadata = self._repr_mimebundle_()
        display(data, metadata=metadata, raw=True)
        display({"text/html": f'{STYLE}<div class="picture-says">{escape(self.finding)}</div>'}, raw=True)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> tuple[dict, dict]:
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.finding}
        return data, {"image/png": {"alt": self.alt, "width": round(100 * self.figure.get_figwidth())}}
