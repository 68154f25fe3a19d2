"""A notebook as a deck of slides: one HTML file with reveal.js inside, which needs neither a kernel nor a network.

A heading starts a slide; cells tagged `live` are left out, and of a widget its sentence stays. reveal.js (MIT licence)
comes from the installed package sphinx-revealjs.
"""

import importlib.util
import re
from pathlib import Path
from typing import Any

import nbformat

from disagg.plan.errors import DisaggError, FileError
from disagg.show.tables import plain

TEMPLATES = Path(__file__).parent / "templates"
WIDGET = "application/vnd.jupyter.widget-view+json"
THEME = "simple"
SHORT = 700  # letters of a text that leave room for code and a picture


class DeckError(DisaggError):
    """reveal.js is not there."""


def deck(path: Path) -> str:
    """The HTML of a stored notebook's slides."""
    from nbconvert import SlidesExporter

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except OSError as error:
        raise FileError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, TypeError, AttributeError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise FileError(f"{path} is no notebook: {plain(str(error))[:200]}") from None
    notebook.cells = slides(notebook.cells)
    notebook.metadata.pop("widgets", None)
    heading = re.search(r"^# (.+)$", "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)
    title = heading[1] if heading else path.stem
    exporter = SlidesExporter(template_name="deck", extra_template_basedirs=[str(TEMPLATES)])
    return exporter.from_notebook_node(notebook, {"deck": {"title": title, **reveal()}})[0]


def slides(cells: list) -> list:
    """Cells that are shown, with where each slide begins; a text with several headings becomes several."""
    shown: list = []
    text = ""  # that stands alone on the slide so far
    for cell in cells:
        if "live" in cell.metadata.get("tags", []) or not cell.source.strip():
            continue
        for part in parts(cell):
            words = part.source if part.cell_type == "markdown" else ""
            joins = not words and 0 < len(text) <= SHORT
            kind = "-" if joins else "slide" if words.startswith("#") or not shown else "subslide"
            part.metadata["slideshow"] = {"slide_type": kind}
            shown.append(part)
            text = words
    return shown


def parts(cell: Any) -> list:
    """The cell, its printed lines as one and its widgets as sentences; or a text's sections from heading to heading."""
    if cell.cell_type == "markdown":
        sections = [part for part in re.split(r"^(?=##? )", cell.source, flags=re.MULTILINE) if part.strip()]
        return [nbformat.v4.new_markdown_cell(part, attachments=cell.get("attachments", {})) for part in sections]
    outputs: list = []
    for output in cell.get("outputs", []):
        output.get("data", {}).pop(WIDGET, None)
        if output.output_type == "stream" and outputs and outputs[-1].get("name") == output.name:
            outputs[-1].text += output.text
        else:
            outputs.append(output)
    if cell.cell_type == "code":
        cell.outputs = outputs
    return [cell]


def reveal() -> dict[str, str]:
    """Script and styles of reveal.js; fonts that a theme would fetch are left out."""
    spec = importlib.util.find_spec("sphinx_revealjs")
    folder = Path(spec.origin).parent / "_static" / "revealjs" / "dist" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise DeckError("reveal.js is not installed: `make slides` does it, or pip install --no-deps sphinx-revealjs")
    styles = [(folder / name).read_text("utf-8") for name in ("reveal.css", f"theme/{THEME}.css")]
    script = (folder / "reveal.js").read_text("utf-8").replace("</script", "<\\/script")
    return {"js": script, "css": re.sub(r"@import[^;]+;", "", "\n".join(styles))}
