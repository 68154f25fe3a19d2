"""Chapters of the course as pages of the site: their text and pictures, and their instruments alive in the browser."""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt  # what rich reads Markdown with, so it is there already

from disagg.course.catalogue import quizzes
from disagg.course.questions import Question
from disagg.course.scenes import SCENES
from disagg.plan.errors import FileError
from disagg.show.columns import look
from disagg.show.scene import Scene

NOTEBOOKS = Path("notebooks")
CHAPTERS = {"00": "00_start_here", "02": "02_disaggregation", "03": "03_layer_streaming", "05": "05_dynamic_batching"}
SCENE = re.compile(r'SCENES\["(\d\d)"\]')
NEEDS_PYTHON = re.compile(r"^(check|hint|progress|check_mine)\(", re.MULTILINE)
QUIZ = re.compile(r'^quiz\("(\d\d)"\)', re.MULTILINE)
ASK = re.compile(r"\bask\(")
WIDGET = "application/vnd.jupyter.widget-view+json"
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


def scene_file(scene: Scene) -> bytes:
    """What an instrument shows while Python is still loading: its controls, and the answer to the start."""
    settings = scene.settings()
    said, columns = scene.answer(scene.run(**settings), settings)
    packed = [base64.b64encode(column).decode() for column in columns]
    return json.dumps({"spec": scene.as_json(), "look": look(), "said": said, "columns": packed}).encode()


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield _markdown(source)
    elif asked := QUIZ.search(source):
        yield from map(_question, range(1, 99), quizzes()[asked[1]])
    elif NEEDS_PYTHON.search(source) or "exercise" in cell["metadata"].get("tags", []):
        yield '<p class="needs">Here the notebook checks or counts what you solved, which takes Python.</p>'
    else:
        scene = SCENE.search(source)
        yield f"<details><summary>code</summary><pre>{escape(source)}</pre></details>"
        if scene and scene[1] in SCENES:
            yield f'<div class="scene" data-scene="{scene[1]}"></div>'
        elif ASK.search(source):
            yield f'<p class="needs">{NO_MODEL}</p><div class="scene" data-scene="00"></div>'
        else:
            yield from _outputs(cell["outputs"])


def _question(number: int, question: Question) -> str:
    """Its options, each with the words that the page's script shows once it is chosen."""
    options = "".join(
        f'<label><input type="radio" name="question-{number}" value="{letter}" '
        f'data-why="{escape(question.why(letter))}"> {_code(said)}</label>'
        for said, letter in question.lettered()
    )
    legend = f"<legend>{number}. {_code(question.text)}</legend>"
    why = '<p class="why" role="status"></p>'
    return f'<fieldset class="question" data-right="{question.right}">{legend}{options}{why}</fieldset>'


def _code(text: str) -> str:
    """Plain text whose `names` are code."""
    return re.sub("`(.+?)`", r"<code>\1</code>", escape(text))


def _markdown(text: str) -> str:
    """Text from the notebooks, without markup of its own; formulas stay as they are written."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return re.sub(r"\$\$(.+?)\$\$", r"<code>\1</code>", html, flags=re.DOTALL)


def _outputs(outputs: Iterable[dict[str, Any]]) -> Iterator[str]:
    for printed, group in groupby(outputs, lambda output: output["output_type"] == "stream"):
        if printed:
            yield _printed("".join(text for output in group for text in output["text"]))
        else:
            yield from map(_shown, group)


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    text, png = "".join(data.get("text/plain", "")), data.get("image/png")
    if png:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        image = f'<img src="data:image/png;base64,{"".join(png).strip()}" alt="{escape(alt)}">'
        return f"<figure>{image}<figcaption>{escape(text)}</figcaption></figure>"
    if WIDGET in data:
        return f'<p class="needs">In the notebook: {escape(text)}</p>'
    return _printed(text)


def _printed(text: str) -> str:
    """Columns stay columns, sentences break."""
    kind = "out" if "  " in text else "out prose"
    return f'<pre class="{kind}">{escape(text)}</pre>' if text else ""
