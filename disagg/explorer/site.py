"""Builds the explorer: a folder that any static host can serve. Nothing in it asks for anything outside the folder."""

import io
import json
import shutil
import zipfile
from html import escape
from pathlib import Path

import disagg
from disagg.explorer import chapters, pyodide
from disagg.explorer.twin import SHOWN
from disagg.plan.errors import FileError
from disagg.trace.files import folder as made
from disagg.trace.files import whole

HERE = Path(__file__).parent
PACKAGE = HERE.parent
LEDGER = Path("figures/claims.json")
ABOUT = "twin-error"  # how ids of such claims begin
NOT_MEASURED = (
    "How far off it is on real devices has not been measured yet. Read orders and shapes here (which preset has the "
    "shorter gaps, where a curve bends), and no figure to its last digit."
)
WINGS = ("plan", "trace", "twin")  # pure Python as a whole
_BESIDE = ("columns", "plots/__init__", "plots/palette", "plots/summaries", "scene", "__init__")  # of show
BESIDE = ["__init__.py", "imported_later.py", *(f"explorer/{name}.py" for name in ("__init__", "settings", "twin"))]
BESIDE += [f"show/{name}.py" for name in _BESIDE]
BESIDE += ["course/__init__.py", "course/scenes.py"]
_SHOWN = ("canvas.js", "flow.js", "curve.js", "instrument.js", "instrument.css", "page.css")
COPIED = [*(PACKAGE / "show" / name for name in _SHOWN), *HERE.glob("*.css"), *HERE.glob("*.js")]


def build(folder: Path, cache: Path | None, ledger: Path = LEDGER) -> Path:
    """Writes the folder anew and returns it; without a cache, all but Pyodide. FileError, also where it holds other
    things than a site."""
    made(folder)
    if not (folder / "disagg.zip").exists() and any(folder.iterdir()):
        raise FileError(f"{folder} holds something else than an explorer; name a new folder")
    files = {"index.html": index(accuracy(ledger)).encode(), "disagg.zip": package()}
    files |= chapters.pages() | {f"scene-{name}.json": chapters.scene_file(scene) for name, scene in SHOWN.items()}
    files |= {path.name: path.read_bytes() for path in COPIED}
    if cache is not None:
        files |= {f"pyodide/{name}": content for name, content in pyodide.files(cache).items()}
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        made(path.parent)
        with whole(path) as out:
            out.write(content)
    return folder


def package() -> bytes:
    """The Python that goes into the browser, packed: the same files give the same bytes."""
    wings = (path for wing in WINGS for path in sorted((PACKAGE / wing).glob("*.py")))
    paths = [*(PACKAGE / name for name in BESIDE), *wings]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            name = path.relative_to(PACKAGE.parent).as_posix()
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def index(measured: list[str]) -> str:
    """The page, with what is known of the twin's error."""
    template = (HERE / "index.html").read_text("utf-8")
    parts = {
        "accuracy": "\n".join(f"<p>{escape(text)}</p>" for text in measured),
        "version": escape(disagg.__version__),
        "pyodide": escape(pyodide.VERSION),
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def accuracy(ledger: Path) -> list[str]:
    """What README says of the twin's measured errors, and on which machine; or that there are none. FileError."""
    if not ledger.exists():
        return [NOT_MEASURED]
    try:
        claims = json.loads(ledger.read_text("utf-8"))["claims"]
        errors = (claim for claim in claims if claim["id"].startswith(ABOUT))
        found = [f"{' '.join(claim['quotes'])} ({claim['hardware']})" for claim in errors]
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{ledger} is no claims ledger: {type(error).__name__}: {error}") from None
    return found or [NOT_MEASURED]
