"""What a stored notebook must look like, so that strict nbval checks something and a stranger can read it.

`python tests/notebook_gate.py notebooks/*.ipynb` lists what is wrong; with `--normalise` before the names it rewrites
the notebooks' metadata instead, as `make notebooks` does.
"""

import ast
import re
import socket
import sys
from pathlib import Path

import nbformat

MAX_BYTES = 500_000

# Cells whose output nbval may ignore (wall-clock numbers, versions, devices): notebook name -> cell ids
# (a chapter's solutions: "solutions/" and the name).
# Every other cell is compared; an entry that names no such cell is itself a fault.
IGNORED_CELLS: dict[str, set[str]] = {
    "00_start_here.ipynb": {"machine", "times", "times-two", "progress"},
    "01_baseline.ipynb": {"ceilings", "roof-own", "real-batching", "real-long"},
    "03_layer_streaming.ipynb": {"real", "real-fresh"},
    "04_cpu_paging.ipynb": {"real-ring"},
    "05_dynamic_batching.ipynb": {"real-target"},
    "06_twin_and_claims.ipynb": {"calibrate", "foretell", "measure", "errors"},
    "my_disagg.ipynb": {"mine-lines"},
    "solutions/my_disagg.ipynb": {"mine-lines"},
    "07_on_a_gpu.ipynb": {"live-steps", "live-timelines", "live-staged"},
}

# What a chapter may have at most: a screen holds no more, and neither does an hour.
WORDS, CODE_CELLS, COLUMNS, PRINTED = 2_200, 26, 88, 12
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
CELL_METADATA = {"tags", "jupyter"}

IGNORE_TAGS = {"nbval-ignore-output", "nbval-skip"}
IGNORE_COMMENT = re.compile(r"^\s*#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|PYTEST_VALIDATE_IGNORE_OUTPUT)", re.MULTILINE)

ANSI = re.compile(r"\x1b\[[0-9;]*m")
BASE64 = re.compile(r"base64,[A-Za-z0-9+/=\s]+")
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{5,}\b")
PATH = re.compile(
    r"(?<![\w.:/-])(~|/(home|root|tmp|work|Users|usr|opt|mnt|var|srv|data|private|content|workspace))/[\w.~-]+"
    r"|site-packages|\b[A-Z]:\\\w+"
)
IP = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
URL_HOST = re.compile(r"\b(?:https?|ftp|wss?|tcp)://(?:[^\s/@]+@)?([^\s/:?#\"'<>]+)")
LOCAL_HOST = re.compile(r"\b[\w-]+\.(?:local|lan|internal|localdomain|corp|intranet)\b|\b\w+@[\w-]+:[~/]")
PUBLIC_HOSTS = {"127.0.0.1", "localhost", "github.com", "huggingface.co", "docs.pytorch.org", "ui.perfetto.dev"}
PUBLIC_HOSTS |= {"www.w3.org", "purl.org", "creativecommons.org", "matplotlib.org"}  # inside every SVG
IMG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
IMG_ALT = re.compile(r"\balt\s*=\s*([\"'])(.*?)\1", re.IGNORECASE | re.DOTALL)


def problems(path: Path) -> list[str]:
    """Every rule that the notebook at `path` breaks, as sentences; empty when it may be stored."""
    found = []
    if path.stat().st_size >= MAX_BYTES:
        found.append(f"the file has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")
    try:
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
    except (nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        return [*found, f"not a valid notebook: {str(error).splitlines()[0]}"]
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        return [*found, f"notebook format {notebook.nbformat}.{notebook.nbformat_minor} has no cell ids; 4.5 has"]

    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    found += _whole_notebook(listed_as(path), notebook, cells)
    found += _form(listed_as(path), notebook.cells, cells)
    for cell in cells:
        found += [f"cell {cell.id}: {problem}" for problem in _one_cell(cell)]
    return found


def listed_as(path: Path) -> str:
    """Its name in IGNORED_CELLS: a chapter's solutions have the chapter's name in a folder of their own."""
    return f"solutions/{path.name}" if path.parent.name == "solutions" else path.name


def _whole_notebook(name, notebook, cells):
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        yield f"the kernel is {kernel!r}, not 'python3'"
    if "widgets" in notebook.metadata:
        yield "widget state is stored; `make notebooks` leaves it out"
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield f"execution counts are {counts}, not 1 to {len(cells)}: run all cells once, from the top"
    ignored = {cell.id for cell in cells if _nbval_ignores(cell)}
    allowed = IGNORED_CELLS.get(name, set())
    if ignored - allowed:
        yield f"nbval ignores cells {sorted(ignored - allowed)}, which IGNORED_CELLS does not list"
    if allowed - ignored:
        yield f"IGNORED_CELLS lists {sorted(allowed - ignored)}, which are not ignored cells here"
    if not any(cell.outputs for cell in cells if cell.id not in ignored):
        yield "no stored output that nbval would compare"


def _form(name, every, cells):
    """Words of prose (drawings, code and quiz apart) and cells of a chapter; width and length of what a cell shows."""
    if name == "panel.ipynb" or name.startswith("solutions/"):
        return
    words = words_of(every)
    if name[:1].isdigit() and words > WORDS:
        yield f"it has {words:,} words of prose; the limit is {WORDS:,}"
    if name[:1].isdigit() and len(cells) > CODE_CELLS:
        yield f"it has {len(cells)} cells of code; the limit is {CODE_CELLS}"
    for cell in cells:
        if (widest := max(map(len, cell.source.splitlines()))) > COLUMNS:
            yield f"cell {cell.id}: a line of {widest} columns; the limit is {COLUMNS}"
        printed = ["".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in cell.outputs]
        if (longest := max((text.count("\n") + 1 for text in map(str.rstrip, printed)), default=0)) > PRINTED:
            yield f"cell {cell.id}: it prints {longest} lines; the limit is {PRINTED}"


def words_of(cells):
    """Words of prose; drawings, code and the quiz apart."""
    prose = (FENCED.sub("", cell.source) for cell in cells if cell.cell_type == "markdown" and cell.id != "quiz-words")
    return sum(len(text.split()) for text in prose)


def _nbval_ignores(cell):
    return bool(IGNORE_TAGS & set(cell.metadata.get("tags", [])) or IGNORE_COMMENT.search(cell.source))


def _one_cell(cell):
    if not cell.outputs and _shows_something(cell.source):
        yield "prints or displays, but has no stored output"
    for output in cell.outputs:
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            yield f"stored error {output.ename}, and the cell has no tag raises-exception"
        yield from _images(output)
        for text in _texts(output):
            yield from _leaks(text)


def _shows_something(source):
    """Whether a top-level statement is a call of print or display: such a cell cannot be silent."""
    try:
        statements = ast.parse(source).body
    except SyntaxError:  # magics
        return False
    calls = [s.value for s in statements if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    return any(
        isinstance(call.func, ast.Name)
        and call.func.id in ("print", "display")
        and not any(keyword.arg == "file" for keyword in call.keywords)
        for call in calls
    )


def _images(output):
    data = output.get("data", {})
    for kind in (kind for kind in data if kind.startswith("image/")):
        if not is_sentence(data.get("text/plain", "")):
            yield f"{kind} with text/plain {data.get('text/plain', '')[:60]!r}, which is no sentence"
        if not is_sentence(output.metadata.get(kind, {}).get("alt", "")):
            yield f"{kind} without alt text: display(..., metadata={{{kind!r}: {{'alt': sentence}}}})"
    for tag in IMG.findall(data.get("text/html", "")):
        alt = IMG_ALT.search(tag)
        if not (alt and is_sentence(alt[2])):
            yield "an <img> in HTML without alt text"


def is_sentence(text):
    """Four words or more that start like a sentence, and not the repr of an object."""
    return bool(re.match(r"[A-Z0-9]", text)) and len(text.split()) >= 4 and not re.match(r"\w+\(", text)


def _texts(output):
    """What a reader or nbval sees of an output, without colours and without the bytes of pictures."""
    if output.output_type == "stream":
        texts = [output.text]
    elif output.output_type == "error":
        texts = [output.ename, output.evalue, *output.traceback]
    else:
        pictures = ("image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf")
        texts = [str(value) for kind, value in output.data.items() if kind not in pictures]
        for entry in output.metadata.values():
            texts += map(str, entry.values() if isinstance(entry, dict) else [entry])
    return [BASE64.sub("", ANSI.sub("", text)) for text in texts]


def _leaks(text):
    if match := ADDRESS.search(text):
        yield f"a memory address in the output: {match[0]}"
    if match := PATH.search(text):
        yield f"a machine path in the output: {match[0]}"
    for address in IP.findall(text):
        if address != "127.0.0.1":
            yield f"an IP address in the output: {address}"
    hosts = [host for host in URL_HOST.findall(text) if host not in PUBLIC_HOSTS and not IP.fullmatch(host)]
    hosts += LOCAL_HOST.findall(text)
    here = socket.gethostname()
    if len(here) > 3 and here != "localhost" and re.search(rf"\b{re.escape(here)}\b", text):
        hosts.append(here)
    for host in hosts:
        yield f"a host name in the output: {host}"


def normalise(path: Path):
    """Keep the metadata that matters, so that a diff shows what changed and not who ran it."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k in CELL_METADATA})
    nbformat.write(notebook, path)


def main(arguments):
    if arguments[:1] == ["--normalise"]:
        for name in arguments[1:]:
            normalise(Path(name))
        return 0
    found = [f"{name}: {problem}" for name in arguments for problem in problems(Path(name))]
    print("\n".join(found) or f"{len(arguments)} notebooks may be stored")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
