"""The shape of the code: its length, how files import each other, what is too long, what has one name twice, types."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import Say
from disagg.show.report import Row

ROOT, TOPS = Path(__file__).parents[1], ("disagg", "benchmarks", "tests")
# `imported_later`, beside the wings, knows the errors of plan alone.
LAYERS = {"plan": 0, "imported_later": 1, "trace": 1, "twin": 2, "monitor": 3, "run": 4, "serve": 5, "show": 5}
LAYERS |= {"course": 6, "explorer": 6, "cli": 7}
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
IGNORE = re.compile(r"#\s*type:\s*ignore(\[[^\]]*\])?(?P<reason>.*)")
SERVE = """
import sys
from disagg import Config, Engine, Request
with Engine(Config.preset("streamed", model="tiny")) as engine:
    engine.serve([Request("a question", 4)])
print(*(sys.modules[name].__file__ for name in sys.modules if name.split(".")[0] == "disagg"), sep="\\n")
"""


class Module(NamedTuple):
    """One Python file; `name` is its path with dots, and a package's own name for its `__init__`."""

    name: str
    path: Path
    text: str
    tree: ast.Module


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def lines(paths: Iterable[Path]) -> int:
    """Lines of text; a compressed file has none."""
    return sum(path.read_bytes().count(b"\n") for path in paths if path.suffix != ".gz")


def read(root: Path, *packages: str) -> dict[str, Module]:
    found = {}
    for path in (path for package in packages for path in files(root / package) if path.suffix == ".py"):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        found[name] = Module(name, path, text := path.read_text(), ast.parse(text))
    return found


def core_lines(root: Path) -> int:
    """Lines of plan/ and of run/ without its folders, in ruff's own layout: no comment keeps a denser one."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copy(root / "pyproject.toml", copy)
        for path in (*files(root / "disagg/plan"), *(root / "disagg/run").glob("*.py")):
            (place := copy / path.parent.name).mkdir(exist_ok=True)
            (place / path.name).write_text(re.sub(r"[ \t]*# fmt: (skip|off|on)\b", "", path.read_text()))
        subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", "."], cwd=copy, check=True)
        return lines(copy.rglob("*.py"))


def arrows(modules: dict[str, Module]) -> dict[str, set[str]]:
    """Which of these modules each one imports: at its top, within functions, and for its types alone."""
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        asked: set[str] = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                asked |= {member if member in modules else node.module for member in members}
        graph[name] = (asked & modules.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Groups of modules that all reach each other."""
    reach = {name: set(others) for name, others in graph.items()}
    for middle in graph:
        for others in reach.values():
            if middle in others:
                others |= reach[middle]
    groups = {frozenset(other for other in others if name in reach[other]) for name, others in reach.items()}
    return [" ".join(sorted(group)) for group in groups if group]


def arrows_up(graph: dict[str, set[str]]) -> list[str]:
    """Imports from a wing of disagg into one above it; what names `disagg` itself names no wing."""
    level = {name: LAYERS.get(f"{name}.".split(".")[1], 8) for name in graph if name.startswith("disagg.")}
    pairs = [(name, other) for name in level for other in sorted(graph[name]) if other in level]
    return [f"{name} → {other}" for name, other in pairs if level[name] < level[other]]


def tower(graph: dict[str, set[str]], prefix: str) -> list[str]:
    """The longest chain of imports among the modules with this prefix."""
    longest: dict[str, list[str]] = {}

    def below(name: str, above: tuple[str, ...] = ()) -> list[str]:
        if name not in longest:
            inner = sorted(other for other in graph[name] if other.startswith(prefix) and other not in above)
            longest[name] = [name, *max((below(other, (*above, name)) for other in inner), key=len, default=[])]
        return longest[name]

    return max((below(name) for name in graph if name.startswith(prefix)), key=len, default=[])


def depth(node: ast.AST, is_elif: bool = False) -> int:
    """How many blocks stand within each other; an `elif` stands beside its `if`."""
    inner = 0
    for field, value in ast.iter_fields(node):
        children = [child for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST)]
        beside = isinstance(node, ast.If) and field == "orelse" and [type(child) for child in children] == [ast.If]
        inner = max([inner, *(depth(child, beside) for child in children)])
    return inner + (isinstance(node, BLOCKS) and not is_elif)


def too_long(modules: dict[str, Module]) -> Iterator[tuple[str, str]]:
    """Classes and functions that are longer or deeper than they may be, as pairs of a row's name and a place."""
    for name, module in modules.items():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            kernel = "kernel" in module.path.stem or any("triton.jit" in ast.unparse(by) for by in node.decorator_list)
            measured = [("functions_over_50", length, 50), ("nesting_over_4", depth(node), 4)] if not kernel else []
            if isinstance(node, ast.ClassDef):
                measured = [("classes_over_200", length, 200)]
            yield from ((row, f"{name}.{node.name} {value}") for row, value, most in measured if value > most)


def doubles(modules: dict[str, Module]) -> list[str]:
    """Names of classes, and of files apart from `__init__`, that occur more than once."""
    nodes = (node for module in modules.values() for node in ast.walk(module.tree))
    classes = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    stems = Counter(module.path.stem for module in modules.values() if module.path.stem != "__init__")
    return sorted(name for names in (classes, stems) for name, count in names.items() if count > 1)


def ignores(modules: dict[str, Module]) -> list[tuple[str, str]]:
    """Each comment that silences mypy, as its place and the reason that it gives."""
    texts = [(name, *place) for name, module in modules.items() for place in enumerate(module.text.splitlines(), 1)]
    found = [(name, number, IGNORE.search(text)) for name, number, text in texts]
    return [(f"{name}:{number}", match["reason"].strip(" #:")) for name, number, match in found if match]


def explicit_any(modules: dict[str, Module], prefix: str) -> list[str]:
    nodes = [(name, node) for name in modules if name.startswith(prefix) for node in ast.walk(modules[name].tree)]
    any_of = [(name, node.lineno) for name, node in nodes if isinstance(node, ast.expr) and ast.unparse(node) == "Any"]
    return [f"{name}:{line}" for name, line in any_of]


def printed(root: Path, tool: str, *words: str) -> list[str]:
    """The lines that a program of this environment prints in the checkout, with the checkout's own settings."""
    command = [str(Path(sys.executable).with_name(tool)), *words]
    here = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, env=here)
    if done.returncode > 1:
        done.check_returncode()  # 1 says that something was found
    return done.stdout.splitlines()


def suite(say: Say, root: Path = ROOT) -> Iterator[Row]:
    def count(name: str, bar: float, found: Iterable[str], note: str = "") -> Row:
        found = list(found)
        return Row(name, len(found), bar=bar, note=note or "; ".join(found[:40]))

    package, modules = files(root / "disagg"), read(root, *TOPS[:2])
    graph, fullest = arrows(modules), Counter(path.parent for path in package).most_common(1)[0]
    say("lines")
    yield Row("core_lines", core_lines(root), "lines", 5900, note="plan and run without its folders, in ruff's layout")
    yield Row("package_lines", lines(package), "lines", 22_800)
    yield Row("repo_lines", sum(lines(files(root / top)) for top in TOPS), "lines", 47_000)
    say("one request in a fresh process")
    opened = printed(root, Path(sys.executable).name, "-c", SERVE)
    yield count("files_loaded", 65, opened, "of ours, after one request of streamed on the CPU")
    yield Row("lines_loaded", lines(map(Path, opened)), "lines", 8000)
    say("imports, lengths and names, types")
    yield count("import_circles", 0, circles(graph))
    yield count("arrows_up", 0, arrows_up(graph))
    contracts = [line for line in printed(root, "lint-imports") if line.endswith((" KEPT", " BROKEN"))]
    yield count("contracts_broken", 0, (line for line in contracts or ["all BROKEN"] if line.endswith("BROKEN")))
    yield count("floors[plan]", 10, floors := tower(graph, "disagg.plan."), " → ".join(floors))
    yield Row("fullest_folder", fullest[1], "files", 28, note=str(fullest[0].relative_to(root)))
    long = list(too_long(modules))
    for name in ("classes_over_200", "functions_over_50", "nesting_over_4"):
        yield count(name, 0, (place for row, place in long if row == name))
    yield count("double_names", 4, doubles(modules))
    errors = [line for line in printed(root, "mypy", "disagg", "benchmarks") if ": error:" in line]
    yield count("mypy_errors", 0, errors, str(Counter(line.split(":")[0] for line in errors).most_common(6))[1:-1])
    silenced = ignores(modules)
    yield count("type_ignores", 20, (place for place, _ in silenced))
    yield count("type_ignores_without_reason", 0, (place for place, reason in silenced if not reason))
    yield count("explicit_any[plan]", 0, explicit_any(modules, "disagg.plan"))
