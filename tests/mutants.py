"""Small faults put into plan/ one at a time, and whether a test notices: `make mutants`. Not part of `make test`.

Each mutant changes one expression or drops one statement of one module. A forked child imports the package with it and
runs the tests that enter the changed function, the module's own file first, until one fails: then it is killed. A child
that ends in no time is killed by the clock. Text and annotations are left alone, since words are for readers.

The sample is drawn per module with a fixed seed. `tests/mutants.txt` says of survivors why no test can tell them from
the original; one that it doesn't list asks for a test.
(mutmut 3 was tried first: its detour through every call makes the simulated worlds run into their time limits.)
"""

import argparse
import ast
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
PLAN, REASONS, REACH = ROOT / "disagg" / "plan", ROOT / "tests" / "mutants.txt", ROOT / "build" / "mutants.json"
CORE = (
    "batching blocks state controller decode_scheduler transfer link kv_transfers placement policy preemption "
    "prefill_scheduler queues transfer_scheduler worker_state"
)
NAMES = (
    "batching blocks config controller monitor fault_plan law queues placement target checked_simulation model_checker "
    "stepper timeline traces transfer_scheduler why hardware goodput tuning archive batch_history receipt_plot "
    "block_map perfetto receipts twin policies"
)
FILES = [f"tests/test_{name}.py" for name in NAMES.split()]
HEAVY = tuple(FILES[-7:])  # import the engine or the pictures: they come second
DECIDING = "policy placement kv_transfers prefill_scheduler decode_scheduler preemption batching controller"
DECIDED = ("tests/test_target.py", "tests/test_policies.py")  # as their own files
ENDLESS = "not every_order and not every_seed"  # minutes each
SLOW_S, BUDGET_S = 3.0, 5.0  # of one test, and of all that a mutant meets; slower tests are left out
QUIET = ["-q", "-x", "-p", "no:cacheprovider", "-p", "_hypothesis_pytestplugin"]

COMPARE = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
OTHER_CALL = {"min": "max", "max": "min", "any": "all", "all": "any"}
LEFT_ALONE = {"annotation", "returns", "decorator_list"}


class Mutant(NamedTuple):
    owner: ast.AST | list  # where the node stands: a field of a node, or a place in a list
    place: str | int
    old: ast.AST
    new: ast.AST
    where: str  # functions and classes around it
    function: str  # the outermost function; "" for statements that run at import

    def __str__(self):
        old, new = (" ".join(ast.unparse(node).split()) for node in (self.old, self.new))
        return f"{self.where}: {old[:90]} → {'(nothing)' if new == 'pass' else new[:90]}"

    def put(self, node: ast.AST):
        if isinstance(self.owner, list):
            self.owner[self.place] = node
        else:
            setattr(self.owner, self.place, node)


def others(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    copy = lambda **fields: type(node)(**{**dict(ast.iter_fields(node)), **fields})  # noqa: E731
    match node:
        case ast.Compare(ops=[op, *_]):
            yield from (copy(ops=[other(), *node.ops[1:]]) for other in COMPARE[type(op)])
        case ast.BoolOp():
            yield copy(op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() | ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield copy(op=ARITHMETIC[type(node.op)]())
        case ast.If() | ast.While() | ast.IfExp() if not isinstance(node.test, (ast.Compare, ast.UnaryOp, ast.BoolOp)):
            yield copy(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Constant(value=bool()):
            yield copy(value=not node.value)
        case ast.Constant(value=int() | float()):
            yield copy(value=node.value + 1)
        case ast.Return(value=ast.expr()) if ast.unparse(node.value) != "None":
            yield copy(value=ast.Constant(None))
        case ast.Call(func=ast.Name(id=name)) if name in OTHER_CALL:
            yield copy(func=ast.Name(OTHER_CALL[name], ast.Load()))
        case ast.Call(args=[first, second, *more], func=func) if ast.unparse(func) != "isinstance":
            if not any(isinstance(arg, ast.Starred) for arg in node.args):
                yield copy(args=[second, first, *more])
    dropped = isinstance(node, (ast.Raise, ast.AugAssign, ast.Delete, ast.Continue, ast.Break))
    dropped |= isinstance(node, ast.Return) and node.value is None
    dropped |= isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    dropped |= isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
    if dropped:
        yield ast.Pass()


def mutants(owner: ast.AST, where="", function="") -> Iterator[Mutant]:
    """Every mutant below a node, in the order of the source."""
    if isinstance(owner, (ast.FunctionDef, ast.ClassDef)):
        where = f"{where}.{owner.name}".lstrip(".")
        function = function or (where if isinstance(owner, ast.FunctionDef) else "")
    for name, value in ast.iter_fields(owner):
        if name in LEFT_ALONE or isinstance(owner, ast.JoinedStr):
            continue
        in_list = [(value, i, node) for i, node in enumerate(value)] if isinstance(value, list) else []
        for holder, place, node in in_list or [(owner, name, value)]:
            if isinstance(node, ast.AST):
                for new in others(node):
                    yield Mutant(holder, place, node, ast.copy_location(new, node), where or "module", function)
                yield from mutants(node, where, function)


# ---- children --------------------------------------------------------------------------------------------------------


class Changed(SourceFileLoader):
    """Loads one module of the package from a changed tree; stands first among the finders."""

    def __init__(self, module: str, code):
        super().__init__(f"disagg.plan.{module}", str(PLAN / f"{module}.py"))
        self.code = code

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname):
        return self.code


def in_a_child(work, limit_s: float) -> int | None:
    """The exit status of `work` in a fork of this process; None where it took too long."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        status = 70
        try:
            status = int(work())
        finally:
            os._exit(status)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


class Reach:
    """A pytest plugin: which functions of plan/ each test enters, and its seconds.

    The rest of a slow test, which no mutant will meet, runs unwatched.
    """

    def __init__(self):
        self.tests: dict[str, tuple[float, list[str]]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        entered, folder, start = set(), str(PLAN), time.perf_counter()

        def note(frame, event, _):
            if time.perf_counter() - start > SLOW_S:
                sys.settrace(None)
            if frame.f_code.co_filename.startswith(folder):
                entered.add(f"{Path(frame.f_code.co_filename).stem}:{frame.f_code.co_qualname}")

        sys.settrace(note)
        yield
        sys.settrace(None)
        self.tests[item.nodeid] = (time.perf_counter() - start, sorted(entered))

    def pytest_sessionfinish(self, exitstatus):
        REACH.parent.mkdir(exist_ok=True)
        ours = {path.stem for path in (ROOT / "tests").glob("*.py")} | {"disagg", "benchmarks", "__main__"}
        outside = [name for name in sys.modules if name.split(".")[0] not in ours]
        REACH.write_text(json.dumps({"passed": exitstatus == 0, "outside": outside, "tests": self.tests}))


def tests_of(mutant: Mutant, module: str, reach: dict) -> tuple[list[str], float]:
    """Tests that enter the changed function, the module's own and quick ones first; and their seconds.

    What runs at import is left to all tests that enter the module, or name it.
    """
    wanted = f"{module}:{mutant.function}"
    inside = {test for test, (_, entered) in reach.items() if wanted in entered}
    if not inside:
        naming = [file for file in FILES if f"plan.{module} " in (ROOT / file).read_text()]
        inside = {test for test, (_, entered) in reach.items() if any(f"{module}:" in name for name in entered)}
        inside |= {test for test in reach if test.split("::")[0] in naming}
    chosen, total = [], 0.0
    own = (f"tests/test_{module}.py", *(DECIDED if module in DECIDING.split() else ()))
    for test in sorted(inside, key=lambda test: (not test.startswith(own), test.startswith(HEAVY), reach[test][0])):
        seconds = reach[test][0]
        if seconds <= SLOW_S and total + seconds <= BUDGET_S:
            chosen.append(test)
            total += seconds
    return chosen, total


def verdict(mutant: Mutant, module: str, tree: ast.Module, reach: dict) -> str:
    tests, seconds = tests_of(mutant, module, reach)
    if not tests:
        return "unreached"
    mutant.put(mutant.new)
    code = compile(ast.fix_missing_locations(tree), str(PLAN / f"{module}.py"), "exec")
    mutant.put(mutant.old)

    def work():
        sys.meta_path.insert(0, Changed(module, code))
        light = [test for test in tests if not test.startswith(HEAVY)]
        rest = [test for test in tests if test.startswith(HEAVY)]
        return any(pytest.main([*QUIET, "--hypothesis-profile=mutants", *part]) for part in (light, rest) if part)

    status = in_a_child(work, 20 + 5 * seconds)
    return "survived" if status == 0 else "timed out" if status is None else "killed"


def fresh() -> bool:
    """Is it known which test enters which function, of these tests and this package?"""
    sources = [*PLAN.glob("*.py"), *(ROOT / "tests").glob("*.py")]
    newest = max(path.stat().st_mtime for path in sources if path != Path(__file__).resolve())
    return REACH.exists() and REACH.stat().st_mtime > newest and json.loads(REACH.read_text())["passed"]


def main():
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("modules", nargs="*", help="names of files in plan/; all of them if none is given")
    asked.add_argument("--count", type=int, nargs=2, default=(10, 5), help="mutants of a core module, of any other")
    asked.add_argument("--seed", type=int, default=0)
    asked = asked.parse_args()
    os.chdir(ROOT)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path.insert(0, str(ROOT))
    if missing := [file for file in FILES if not (ROOT / file).exists()]:
        sys.exit(f"no such files of tests: {', '.join(missing)}; correct NAMES in {__file__}")
    if not fresh():
        print("which test enters which function …", flush=True)
        if in_a_child(lambda: pytest.main([*QUIET, "-k", ENDLESS, *FILES], plugins=[Reach()]), 1800):
            sys.exit("the tests fail without any mutant")
    reach = json.loads(REACH.read_text())
    for name in reach["outside"]:  # once, before the first fork
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if loaded := [name for name in sys.modules if name.startswith("disagg.")]:
        sys.exit(f"{loaded[0]} is loaded before the first fork, so no mutant would be: leave out what imports it")
    reach = reach["tests"]
    gc.freeze()
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure need not be made small
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, max_examples=100, phases=phases)
    listed = {line.split("  # ")[0] for line in REASONS.read_text().splitlines()} if REASONS.exists() else set()
    sums = [0, 0, 0]
    for module in asked.modules or sorted(path.stem for path in PLAN.glob("[a-z]*.py")):
        tree = ast.parse((PLAN / f"{module}.py").read_text())
        found = list(mutants(tree))
        random.Random(f"{asked.seed} {module}").shuffle(found)
        sample = found[: asked.count[module not in CORE.split()]]
        verdicts = [(mutant, verdict(mutant, module, tree, reach)) for mutant in sample]
        survivors = [(m, v) for m, v in verdicts if v in ("survived", "unreached")]
        names = [f"{module}.{m}" for m, _ in survivors]
        known = sum(name in listed for name in names)
        late = sum(v == "timed out" for _, v in verdicts)
        print(f"{module:18} {len(sample):3} of {len(found):4} mutants, {len(sample) - len(survivors):3} killed "
              f"({late} by the clock), {known} listed, {len(names) - known} to look at", flush=True)  # fmt: skip
        for name, (mutant, how) in zip(names, survivors, strict=True):
            if name not in listed:
                print(f"    {how}, line {mutant.old.lineno}: {name}", flush=True)
        sums = [a + b for a, b in zip(sums, (len(sample), len(sample) - len(survivors), known), strict=True)]
    taken, killed, known = sums
    print(f"{killed} of {taken} killed: {killed / taken:.1%}; without the listed: {killed / (taken - known):.1%}")


if __name__ == "__main__":
    main()
