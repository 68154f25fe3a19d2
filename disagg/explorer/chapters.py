"""Chapters of the course as pages of the site: their text and pictures, and their instruments alive in the browser."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt  # what rich reads Markdown with, so it is there already

from disagg.course.scenes import SCENES
from disagg.plan.errors import FileError
from disagg.show.columns import look

NOTEBOOKS = Path("notebooks")
CHAPTERS = {"00": "00_start_here", "02": "02_disaggregation", "03": "03_layer_streaming", "05": "05_dynamic_batching"}
SCENE = re.compile(r'SCENES\["(\d\d)"\]')
NEEDS_PYTHON = re.compile(r"^(check|hint|quiz|progress|check_mine)\(", re.MULTILINE)
ASK = re.compile(r"\bask\(")
RECORDED = (
    "Pictures and printed lines were made when the notebook was stored, with the real model where its text says so. "
    "The instruments run here: the simulator of the package, in your browser."
)
NO_MODEL = "In the notebook a box here takes a question, and the real model answers it while these bars grow."
HERE = Path(__file__).parent


def pages(folder: Path = NOTEBOOKS) -> dict[str, bytes]:
    """Each chapter's page by its name; none where the notebooks are not there. FileError for one that can't be read."""
    found = {name: folder / f"{file}.ipynb" for name, file in CHAPTERS.items()}
    return {f"{name}.html": page(name, path).encode() for name, path in found.items() if path.exists()}


def page(name: str, path: Path) -> str:
    try:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        body = "\n".join(part for cell in cells for part in _cell(cell))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} is no notebook: {type(error).__name__}: {error}") from None
    template = (HERE / "chapter.html").read_text("utf-8")
    links = " · ".join(
        f'<a href="{other}.html">{other}</a>' if other != name else f"<b>{other}</b>" for other in CHAPTERS
    )
    title = re.search(r"<h1>(.*?)</h1>", body)
    parts = {"title": title[1] if title else name, "links": links, "body": body, "recorded": escape(RECORDED)}
    for key, text in parts.items():
        template = template.replace(f"<!--{key}-->", text)
    return template


def scene_file(name: str) -> bytes:
    """What an instrument shows while Python is still loading: its controls, and the answer to the start."""
    scene, settings = SCENES[name], SCENES[name].settings()
    said, columns = scene.answer(scene.run(**settings), settings)
    return packed({"spec": scene.as_json(), "look": look(), "said": said}, columns)


def packed(said: dict[str, Any], columns: list[bytes]) -> bytes:
    return json.dumps({**said, "columns": [base64.b64encode(column).decode() for column in columns]}).encode()


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _markdown(source)
    elif NEEDS_PYTHON.search(source) or "exercise" in cell["metadata"].get("tags", []):
        yield '<p class="needs">An exercise stands here in the notebook, where Python can check it.</p>'
    else:
        scene = SCENE.search(source)
        yield f"<details><summary>code</summary><pre>{escape(source)}</pre></details>"
        if scene and scene[1] in SCENES:
            yield f'<div class="scene" data-scene="{scene[1]}"></div>'
        elif ASK.search(source):
            yield f'<p class="needs">{NO_MODEL}</p><div class="scene" data-scene="00"></div>'
        else:
            yield from _outputs(cell["outputs"])


def _markdown(text: str) -> str:
    """Text from the notebooks, without markup of its own; formulas stay as they are written."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return re.sub(r"\$\$(.+?)\$\$", r"<code>\1</code>", html, flags=re.DOTALL)


def _outputs(outputs: Iterable[dict[str, Any]]) -> Iterator[str]:
    for output in outputs:
        data = output.get("data", {})
        text = "".join(output.get("text", data.get("text/plain", "")))
        if png := data.get("image/png"):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            yield f'<figure><img src="data:image/png;base64,{"".join(png).strip()}" alt="{escape(alt)}">'
            yield f"<figcaption>{escape(text)}</figcaption></figure>"
        elif text:
            yield f'<pre class="out">{escape(text)}</pre>'
