"""The notebooks, in a copy: words and cells, seconds of each from the top, green under strict nbval, red once something
is changed; a student's engine; and the widgets in a browser."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path

import nbformat

import disagg
from benchmarks.common import Say
from benchmarks.house import files, lines
from benchmarks.policy.suite import chosen
from benchmarks.robustness import notebook_browser
from benchmarks.robustness.notebook_mutation import KINDS, Mutation, mutations
from disagg.plan.errors import FileError
from disagg.show.report import Failed, LeftOut, Row

CHECKOUT = Path(disagg.__file__).parents[1]
LIMIT_S = 600  # of one command: a hung notebook ends the bench, in words
#: Strict runs: as it is, three times in a row, and then as on another machine.
RUNS: tuple[dict[str, str], ...] = ({}, {}, {}, {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"})


def suite(say: Say, only: str | None = None) -> Iterator[Row | LeftOut]:
    """The rows as they are measured; a part that fails is a row with the reason."""
    parts: dict[str, Callable[[Say, Path], Iterable[Row | LeftOut]]] = {
        "form": form_rows,
        "seconds": seconds_rows,
        "mine": mine_rows,
        "green": lambda say, folder: [green_row(say, folder)],
        "bite": lambda say, folder: [bite_row(say, folder)],
        "browser": lambda say, folder: notebook_browser.rows(say, command),
    }
    with copied() as folder:
        for name, rows in chosen(parts, only).items():
            try:
                yield from rows(say, folder)
            except Exception as error:  # the other parts are measured all the same
                yield Failed.of(name, error)


@contextmanager
def copied() -> Iterator[Path]:
    """The notebooks in a temporary folder, solutions too; what students left there stays behind."""
    source = CHECKOUT / "notebooks"
    if not source.is_dir():
        raise FileError(f"no notebooks beside the package in {CHECKOUT}; run this in the project's folder")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "notebooks"
        shutil.copytree(
            source, folder, ignore=shutil.ignore_patterns(".*", "Untitled*", "*.nbconvert.ipynb", "my_disagg.py")
        )
        yield folder


def named(folder: Path) -> dict[str, Path]:
    """Notebooks by name without the ending, `solutions/…` among them."""
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.ipynb"))}


def form_rows(say: Say, folder: Path) -> Iterator[Row]:
    """Words and cells of each chapter as the gate of `make test` counts them, and the length of the package."""
    say("words, cells, lines")
    gate = runpy.run_path(str(CHECKOUT / "tests" / "notebook_gate.py"))
    found = named(folder)
    broken = [f"{name}: {problem}" for name, path in found.items() for problem in gate["problems"](path)]
    yield Row("gate_problems", len(broken), bar=0, n=len(found), note="; ".join(broken[:5]))
    for name, path in found.items():
        if name[:1].isdigit():
            cells = nbformat.read(path, as_version=4).cells
            code = [cell for cell in cells if cell.cell_type == "code"]
            yield Row(f"words[{name[:2]}]", gate["words_of"](cells), bar=gate["WORDS"])
            yield Row(f"cells[{name[:2]}]", len(code), bar=gate["CODE_CELLS"])
    yield Row("package_lines", lines(files(CHECKOUT / "disagg")), "lines", 23_500)


def mine_rows(say: Say, folder: Path) -> Iterator[Row]:
    """A student's seven pieces from the solution's cells, and what they answer to eight prompts."""
    say("my_disagg, from the solution's cells")
    done = executed(folder / "solutions" / "my_disagg.ipynb")
    shown = {cell.id: "".join(output.get("text", "") for output in cell.outputs) for cell in done if "outputs" in cell}
    same = re.findall("True|False", shown["mine-serve-check"].splitlines()[0])
    said = shown["mine-lines"].strip()
    note = "prompts with the greedy tokens of Hugging Face's own generate"
    yield Row("my_disagg_same_tokens", same.count("True"), bar=8, n=len(same), note=note, at_most=False)
    yield Row("my_disagg_lines", int(re.findall(r"\d+", said)[0]), "lines", 150, note=said)


def executed(path: Path) -> list[nbformat.NotebookNode]:
    """Its cells after restart and run all; without any network where the system can take it away."""
    kept = path.with_name("done.nbconvert.ipynb")
    done = command(*offline(), sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute",
                   "--KernelManager.transport=ipc", "--log-level=ERROR", "--output", kept.name,
                   path.name, folder=path.parent)  # fmt: skip
    if done.returncode:
        raise FileError(f"{path.stem} does not run from the top: {done.stderr[-600:]}")
    cells = nbformat.read(kept, as_version=4).cells
    kept.unlink()
    return cells


def seconds_rows(say: Say, folder: Path) -> Iterator[Row]:
    """Wall time of all cells, from the first one's start to the last one's end; the slowest notebook first."""
    found = {}
    for name, path in named(folder).items():
        say(f"{name}: restart and run all")
        found[name] = cells_s(executed(path))
    how = "no network" if offline() else "no Hub; this system can't cut a process off its network"
    for name, took in sorted(found.items(), key=lambda pair: -pair[1]):
        yield Row(f"notebook_s[{name}]", took, "s", 60, 1, how)
    yield Row("notebook_s[all]", sum(found.values()), "s", 300, len(found), "the sum, solutions included")


def cells_s(cells: list[nbformat.NotebookNode]) -> float:
    times = [stamp for cell in cells for stamp in cell.metadata.get("execution", {}).values()]
    begin, end = (datetime.fromisoformat(stamp.replace("Z", "+00:00")) for stamp in (min(times), max(times)))
    return (end - begin).total_seconds()


def green_row(say: Say, folder: Path) -> Row:
    """Strict nbval on all notebooks, again and again."""
    found, red = 0, []
    for number, settings in enumerate(RUNS, 1):
        say(f"strict nbval, {number} of {len(RUNS)}{': ' + ' '.join(settings.values()) if settings else ''}")
        done = nbval(*named(folder).values(), folder=folder, **settings)
        found += done.returncode == 0
        red += [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    note = "three times as it is, once with " + ", ".join(f"{k}={v}" for k, v in RUNS[-1].items())
    return Row("nbval_green", 100 * found / len(RUNS), "%", 100, len(RUNS), "; ".join([note, *red]), at_most=False)


def bite_row(say: Say, folder: Path) -> Row:
    """Every mutation in a copy of its notebook; the note is the table, a line each."""
    lines, caught = [], []
    for name, path in named(folder).items():
        found = mutations(nbformat.read(path, as_version=4))
        for mutation in found:
            say(f"{name}: {mutation}")
            caught.append(bites(path, mutation))
            lines.append(f"{'caught' if caught[-1] else 'MISSED'}: {name}, {mutation}")
        if missing := set(KINDS) - {mutation.kind for mutation in found}:
            lines.append(f"{name} has no {' and no '.join(sorted(missing))}")
    share = 100 * sum(caught) / max(1, len(caught))
    return Row("bite_caught_pct", share, "%", 100, len(caught), "\n".join(lines), at_most=False)


def bites(path: Path, mutation: Mutation) -> bool:
    """Is nbval red about the changed copy? It stops at the first cell that differs."""
    changed = path.with_name("changed.ipynb")
    path.with_name("my_disagg.py").unlink(missing_ok=True)  # what the changed copy before it kept
    nbformat.write(mutation.applied(nbformat.read(path, as_version=4)), changed)
    try:
        done = nbval(changed, "-x", folder=path.parent)
    finally:
        changed.unlink()
    if done.returncode not in (0, 1):  # 1: some cell failed; anything else is no verdict
        raise FileError(f"nbval could not run {path.name}: {(done.stdout + done.stderr)[-600:]}")
    return done.returncode == 1


# ---- commands --------------------------------------------------------------------------------------------------------


def nbval(*arguments: str | Path, folder: Path, **settings: str) -> subprocess.CompletedProcess:
    """Strict, as `make test` runs it."""
    sanitize = CHECKOUT / "tests" / "nbval_sanitize.cfg"
    return command(sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120",
                   "--nbval-sanitize-with", sanitize, "-p", "no:cacheprovider", "-q", "--rootdir", folder, *arguments,
                   folder=folder, limit_s=LIMIT_S, **settings)  # fmt: skip


def command(*parts: str | Path, folder: Path, limit_s: float = LIMIT_S, **settings: str) -> subprocess.CompletedProcess:
    """Runs it where nothing is downloaded, and with this checkout's package."""
    path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "JUPYTER_PLATFORM_DIRS": "1", **settings}
    try:
        return subprocess.run([str(part) for part in parts], cwd=folder, env=environment, capture_output=True,
                              text=True, timeout=limit_s, stdin=subprocess.DEVNULL)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FileError(f"after {limit_s} s still busy: {' '.join(map(str, parts[-2:]))}") from None


@cache
def offline() -> tuple[str, ...]:
    """What to put before a command so that it has no network, not even the loopback; nothing where that is refused."""
    prefix = ("unshare", "--map-root-user", "--net")
    try:
        allowed = subprocess.run([*prefix, "true"], capture_output=True, timeout=10).returncode == 0
    except OSError:
        allowed = False
    return prefix if allowed else ()
