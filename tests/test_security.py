"""What the package never does: unpickle, evaluate text, listen but at a door, import torch in pure wings, hide why."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import disagg
from disagg.imported_later import first_of
from disagg.plan.errors import PackageError
from disagg.run.model.model import load_model

ROOT = Path(disagg.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code"}
MODULES |= {"socket", "socketserver", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "telnetlib", "xmlrpc"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("hub", "load"), ("jit", "load"), ("yaml", "load")}
ATTRIBUTES |= {("numpy", "load"), ("np", "load"), ("os", "system"), ("os", "popen")}
ATTRIBUTES |= {("builtins", name) for name in CALLS} | {("asyncio", "create_subprocess_shell")}
KEYWORDS = {"shell", "trust_remote_code", "allow_pickle", "unsafe"}


def offences(tree: ast.AST) -> list[str]:
    """Every place in a module that does what no module may."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                bad = [alias.name for alias in names if alias.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names, level=0):
                bad = [module] if module.split(".")[0] in MODULES else []
                bad += [f"{module}.{a.name}" for a in names if (module.split(".")[-1], a.name) in ATTRIBUTES]
            case ast.Call(func=ast.Name(id=name), keywords=keywords):
                bad = ([name] if name in CALLS else []) + switched_on(keywords)
            case ast.Call(func=ast.Attribute(value=owner, attr=name), keywords=keywords):
                last = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                bad = ([f"{last}.{name}"] if (last, name) in ATTRIBUTES else []) + switched_on(keywords)
            case _:
                continue
        found += [f"line {node.lineno}: {what}" for what in bad]
    return found


def switched_on(keywords: list[ast.keyword]) -> list[str]:
    return [k.arg for k in keywords if k.arg in KEYWORDS and getattr(k.value, "value", None) is not False]


def test_no_source_file_does_what_it_must_not():
    assert len(SOURCES) > 30
    found = {path.relative_to(ROOT).as_posix(): offences(ast.parse(path.read_text("utf-8"))) for path in SOURCES}
    door = {"serve/server.py": ["line 11: socket"]}  # the one place that listens, and on this machine alone
    assert {path: lines for path, lines in found.items() if lines} == door
    server = (ROOT / "serve/server.py").read_text()
    assert re.findall(r"create_server\(\((\w+), ", server) == ["HOST"] and 'HOST = "127.0.0.1"\n' in server


def test_the_search_finds_each_of_them():
    """The control: a file with all offences."""
    lines = [
        "import pickle", "from pickle import loads", "import http.client", "torch.load(path)", "torch.hub.load(x)",
        "eval(text)", "exec(text)", "compile(text, '', 'exec')", "run(line, shell=True)", "run(line, shell=flag)",
        "x.from_pretrained(y, trust_remote_code=True)", "np.load(p, allow_pickle=True)", "os.system(line)",
        "import socket", "def f():\n    import socket as s", "from urllib.request import urlopen",
        "from torch import load", "from numpy import load as read", "from os import path, system",
        "builtins.eval(text)",
    ]  # fmt: skip
    assert all(offences(ast.parse(line)) for line in lines)
    innocent = ["module.eval()", "run(line, shell=False)", "re.compile(text)", "json.load(file)", "load(config)"]
    assert not any(offences(ast.parse(line)) for line in innocent)


def test_no_text_search_finds_them_either():
    """Names built at run time would hide from the tree; none of these words stands in a file at all."""
    words = ("pickle.load", "torch.load(", "trust_remote_code=True", "shell=True", "allow_pickle=True")
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert not [word for word in words if word in text], path.name


AUDIT = """
import importlib, pkgutil, sys
seen = []
WATCHED = ("socket.", "urllib.", "http.", "ftplib.", "subprocess.", "os.system", "os.posix_spawn", "os.fork")
def hook(event, args):
    written = event == "open" and set(str(args[1])) & set("wax+") and args[1] is not None
    if event.startswith(WATCHED) or written:
        seen.append((event, str(args[:2])[:200]))
{before}
sys.addaudithook(hook)
{body}
print(*seen, sep="\\n")
sys.exit(len(seen) > 0)
"""


def audited(before: str, body: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh interpreter; it fails where a socket, a process or a file to write was opened."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    code = AUDIT.format(before=before, body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=110)


def test_nothing_is_downloaded_started_or_written_by_import_or_run():
    """Every module of plan and run, and a run of the whole pipeline; torch and transformers were imported before."""
    body = """
import disagg
from disagg import Config, Engine, Request
for room in ("plan", "run"):
    package = importlib.import_module(f"disagg.{room}")
    for module in pkgutil.walk_packages(package.__path__, f"disagg.{room}."):
        if module.name.endswith("kernels"):
            continue  # they need triton; only what runs on a GPU imports them
        importlib.import_module(module.name)
with Engine(Config.preset("dynamic", model="tiny", prefill_blocks=64, decode_blocks=64, host_blocks=64)) as engine:
    assert len(engine.serve([Request("Why?", 8)]).results[0].token_ids)
"""
    done = audited("import torch, torch._dynamo; from transformers import LlamaForCausalLM", body)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_audit_sees_sockets_processes_and_files():
    """The control."""
    for body in ("import socket; socket.socket()", "import os; os.system('true')", "open(os.devnull, 'w')"):
        assert "(" in audited("import os", body).stdout


def test_jupyterlab_is_a_safe_one_and_listens_on_this_machine_alone_behind_its_token():
    """Bounds and lines as they stand; what the server then does is its own to test."""
    required = re.search(r"^jupyterlab>=(\d+)\.(\d+)\.(\d+)", read("requirements.txt"), re.M)
    tested = re.search(r"^jupyterlab==(\d+)\.(\d+)\.(\d+)", read("constraints.txt"), re.M)
    assert tuple(map(int, required.groups())) >= (4, 5, 9) and tuple(map(int, tested.groups())) >= (4, 5, 9)
    makefile = read("Makefile").replace("\\\n", " ")
    starts = re.findall(r"^.*-m (?:jupyterlab|voila|jupyter (?:lab|notebook))\b.*$", makefile, re.M)
    servers = [line for line in starts if "labextensions" not in line]
    assert len(servers) == 2 and "--ip=127.0.0.1" in servers[0] and "--Voila.ip=127.0.0.1" in servers[1]
    assert "--Voila.auto_token=True" in servers[1], "without it that server would have none"
    for line in servers:
        open_door = r"0\.0\.0\.0|--ip=\*|token=['\"]?(\s|$)|password|disable_check_xsrf|allow_origin"
        assert not re.search(open_door, line, re.I), line


def read(name: str) -> str:
    return (ROOT.parent / name).read_text("utf-8")


BROKEN = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}: raise {error}
sys.meta_path.insert(0, Broken())
try: from {line}
except Exception as error: print(type(error).__name__, error)
"""
CASES = {
    ("torch", "ModuleNotFoundError('No module named x', name='x')"): "the package x is not installed",
    ("transformers.modeling_utils", "ImportError('odd')"): r"imported \(ImportError: odd\)",
    ("transformers.modeling_utils", "RuntimeError('operator nms does not exist')"): "RuntimeError: operator nms does",
    ("torch._C", "OSError('libcudart.so.12: cannot open shared object file')"): "OSError: libcudart.so.12: cannot",
    (
        "transformers.modeling_utils",
        "ModuleNotFoundError(\"No module named 'a.b'\", name='a.b')",
    ): "No module named 'a.b'",
}


@pytest.mark.parametrize("name, error", CASES)
@pytest.mark.parametrize("line", ["disagg import Engine", "disagg.show import panel"])
def test_a_broken_package_names_its_cause(line, name, error):
    code = BROKEN.format(name=name, error=error, line=line)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert done.stdout.startswith("PackageError ") and "None" not in done.stdout, done.stdout + done.stderr[-300:]
    assert re.search(CASES[name, error], done.stdout) and "`make setup`" in done.stdout


def test_a_module_that_is_only_missed_at_a_load_is_told_too(monkeypatch):
    def wrapped():
        try:
            raise RuntimeError("operator nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'LlamaForCausalLM'") from error

    monkeypatch.setattr("disagg.run.model.source.make_tiny_llama", wrapped)
    with pytest.raises(PackageError, match=r"can't be imported \(RuntimeError: operator nms") as caught:
        load_model("tiny")
    assert isinstance(first_of(caught.value), RuntimeError)


WINGS = {"plan": ("plan",), "trace": ("plan", "trace"), "twin": ("plan", "trace", "twin")}
WINGS["monitor"] = (*WINGS["twin"], "monitor")
FILES = [path for wing in WINGS for path in sorted((ROOT / wing).glob("*.py"))]
SEEDED = (
    "checked_simulation",
    "fault_plan",
    "policy_check",
    "workloads",
)  # these draw from `random.Random(seed)`, and nothing else
CLOCKS = ("time", "datetime", "threading", "asyncio", "random", "socket", "subprocess", "pickle")


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names.append(node.module)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_imports_by_reading(path):
    if path.stem == "fault_injection":
        pytest.skip("strikes real workers, between threads")
    allowed = tuple(f"disagg.{wing}" for wing in WINGS[path.parent.name])
    for name in imported(path):
        top = name.split(".")[0]
        assert name.startswith(allowed) or top in sys.stdlib_module_names, f"{path.name} imports {name}"
        if (path.stem in SEEDED, name) == (True, "random"):
            uses = re.findall(r"\brandom\.(\w+)(\(\)?)", path.read_text())
            assert set(uses) == {("Random", "(")}, f"{path.name} draws without a seed: {uses}"
            continue
        if (path.stem, name) == ("traces", "datetime"):  # reads dates, and asks for none
            assert set(re.findall(r"\bdatetime\.(\w+)", path.read_text())) == {"fromisoformat"}
            continue
        assert top not in CLOCKS, f"{path.name} imports {name}: no clock, no thread, no chance of its own"


BLOCKED = """
import sys
for name in ("torch", "numpy", "transformers"):
    sys.modules[name] = None
import importlib
importlib.import_module("disagg")
before = set(sys.modules)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sorted(name for name in set(sys.modules) - before if name.startswith("disagg")))
"""


@pytest.mark.parametrize("wing", WINGS)
def test_imports_with_torch_blocked(wing):
    names = [f"disagg.{wing}.{path.stem}" for path in sorted((ROOT / wing).glob("[!_]*.py"))]
    path = os.pathsep.join([str(ROOT.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *names], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    others = [name for name in done.stdout.split() if name.split(".")[1] not in WINGS[wing]]
    assert not others, "no other floor"
