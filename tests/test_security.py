"""What the package never does: unpickle, evaluate text, run foreign code, open a socket, download at import."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import disagg

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
    """Dangerous keywords with any value but a literal False."""
    return [k.arg for k in keywords if k.arg in KEYWORDS and getattr(k.value, "value", None) is not False]


def test_no_source_file_does_what_it_must_not():
    assert len(SOURCES) > 30
    found = {path.relative_to(ROOT).as_posix(): offences(ast.parse(path.read_text("utf-8"))) for path in SOURCES}
    assert {path: lines for path, lines in found.items() if lines} == {}


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
    starts = [
        line for line in makefile.splitlines() if re.search(r"-m (jupyterlab|voila|jupyter (lab|notebook))\b", line)
    ]
    servers = [line for line in starts if "labextensions" not in line]
    assert len(servers) == 2 and "--ip=127.0.0.1" in servers[0] and "--Voila.ip=127.0.0.1" in servers[1]
    assert "--Voila.auto_token=True" in servers[1], "without it that server would have none"
    for line in servers:
        assert not re.search(
            r"0\.0\.0\.0|--ip=\*|token=['\"]?(\s|$)|password|disable_check_xsrf|allow_origin", line, re.I
        ), line


def read(name: str) -> str:
    return (ROOT.parent / name).read_text("utf-8")


def test_plan_runs_without_torch_and_numpy():
    body = """
import disagg
from disagg import Config, Request, simulate
simulate(Config.preset("dynamic"), [Request([1, 2, 3], 4)])
assert not {"torch", "numpy", "transformers"} & set(sys.modules), "plan imported them"
"""
    done = audited("", body)
    assert done.returncode == 0, done.stdout + done.stderr
