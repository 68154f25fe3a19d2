"""What `python -m benchmarks house` counts, on a small tree that breaks every rule once."""

from pathlib import Path

import pytest

from benchmarks import house

DENSE = "POINTS = [(1, 2),\n          (3, 4)]  # fmt: skip\n"
LONG = "class Wide:\n" + "    x = 1\n" * 200 + "def long():\n" + "    x = 1\n" * 50
DEEP = "def deep(a):\n" + "".join(" " * 4 * (n + 1) + "if a:\n" for n in range(5)) + " " * 24 + "return a\n"
ELIFS = "def flat(a):\n    if a == 0:\n        return 0\n" + "    elif a:\n        return 1\n" * 6
TREE = {
    "disagg/__init__.py": "from disagg.plan.low import Thing\n",
    "disagg/plan/__init__.py": "",
    "disagg/plan/low.py": "from typing import Any\nclass Thing:\n    x: Any = 1\n" + DENSE,
    "disagg/plan/mid.py": "from disagg.plan import low\ny = 1  # type: ignore[name-defined]\n",
    "disagg/plan/top.py": "def late():\n    from disagg.plan.mid import y\n",
    "disagg/trace/first.py": "import disagg.trace.second\nimport disagg.show.page  # type: ignore  # a reason\n",
    "disagg/trace/second.py": "if TYPE_CHECKING:\n    from disagg.trace import first\n",
    "disagg/show/page.py": "from disagg import Thing\nclass Thing: pass\n" + LONG + DEEP + ELIFS,
    "disagg/show/page.css": "a {}\nb {}\n",
    "disagg/run/loop.py": "x = 1\n",
    "disagg/run/gpu/fast_kernel.py": LONG.partition("def")[2].join(("def", "")),
    "disagg/run/gpu/loop.py": "@triton.jit\n" + LONG[LONG.index("def") :],
    "benchmarks/page.py": "import disagg.show.page\n",
    "tests/golden/kept.gz": "\n\n\n",
    "pyproject.toml": "[tool.ruff]\nline-length = 120\n",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name, text in TREE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def modules(root):
    return house.read(root, "disagg", "benchmarks")


def test_core_is_counted_in_ruffs_own_layout(root):
    # low.py: an import, two blank lines, a class of two lines, two blank lines, and POINTS, which fits into one line;
    # mid.py: two lines and a blank one; top.py: two; loop.py of run/ one; run/gpu stays out.
    assert house.core_lines(root) == (1 + 2 + 2 + 2 + 1) + 3 + 2 + 1


def test_lines_are_those_of_text(root):
    assert house.lines(house.files(root / "disagg/show")) == 2 + TREE["disagg/show/page.py"].count("\n")
    assert house.lines(house.files(root / "tests")) == 0


def test_imports_are_read_wherever_they_stand(modules):
    graph = house.arrows(modules)
    assert graph["disagg.plan.top"] == {"disagg.plan.mid"} and graph["disagg.plan.mid"] == {"disagg.plan.low"}
    assert graph["disagg.show.page"] == {"disagg"} and graph["benchmarks.page"] == {"disagg.show.page"}
    assert house.circles(graph) == ["disagg.trace.first disagg.trace.second"]
    assert house.arrows_up(graph) == ["disagg.trace.first → disagg.show.page"]
    assert house.tower(graph, "disagg.plan.") == ["disagg.plan.top", "disagg.plan.mid", "disagg.plan.low"]


def test_a_longer_circle_is_one_and_what_only_leads_to_it_is_no_part():
    assert house.circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == ["a b c"]


def test_long_and_deep_parts_are_named_and_kernels_are_not(modules):
    assert sorted(house.too_long(modules)) == [
        ("classes_over_200", "disagg.show.page.Wide 201"),
        ("functions_over_50", "disagg.show.page.long 51"),
        ("nesting_over_4", "disagg.show.page.deep 5"),
    ]


def test_one_name_of_two_things(modules):
    assert house.doubles(modules) == ["Thing", "loop", "page"]


def test_ignores_and_any(modules):
    assert house.ignores(modules) == [("disagg.plan.mid:2", ""), ("disagg.trace.first:2", "a reason")]
    assert house.explicit_any(modules, "disagg.plan") == ["disagg.plan.low:3"]
    assert house.explicit_any(modules, "disagg.show") == []


def test_every_row_has_its_bar_and_tools_are_counted_by_what_they_print(root, monkeypatch):
    answers = {
        "mypy": ["disagg/a.py:1: error: one  [x]", "disagg/a.py:1: note: two", "Found 1 error"],
        "lint-imports": ["Imports point down KEPT", "Nothing else BROKEN"],
    }
    opened = [str(root / "disagg/plan/low.py"), str(root / "disagg/plan/mid.py")]
    monkeypatch.setattr(house, "printed", lambda _, tool, *words: answers.get(tool, opened))
    rows = {row.name: row for row in house.suite(lambda text: None, root)}
    assert all(row.bar is not None for row in rows.values())
    values = {name: row.value for name, row in rows.items()}
    assert values["mypy_errors"] == values["contracts_broken"] == 1
    assert (values["files_loaded"], values["lines_loaded"]) == (2, 5 + 2)
    assert (values["fullest_folder"], rows["fullest_folder"].note) == (4, "disagg/plan")
    assert (values["type_ignores"], values["type_ignores_without_reason"]) == (2, 1)


def test_a_served_request_opens_files_of_ours_only():
    opened = house.printed(house.ROOT, Path(house.sys.executable).name, "-c", house.SERVE)
    assert str(house.ROOT / "disagg/run/engine.py") in opened and len(opened) == len(set(opened))
    assert all(Path(path).is_relative_to(house.ROOT / "disagg") for path in opened)
