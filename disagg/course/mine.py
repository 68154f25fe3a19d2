"""`my_disagg`: the engine that a student builds through the course. `check_mine` looks at a piece, `serve` runs all.

A piece that is right is kept in my_disagg.py beside the notebooks, for later chapters. Where one is empty or wrong, the
ready one stands in.
"""

import ast
import dis
import inspect
import re
import runpy
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from disagg.course import bridge
from disagg.course.catalogue import NOT_KEPT, piece_name, remember
from disagg.course.checking import Verdict, tried
from disagg.course.piece_checks import CHECKS, hand_off, steps_of
from disagg.course.pieces import READY
from disagg.course.student_engine import SIZE, Hops, MyRow, MyServing, MySetting, twin
from disagg.plan.blocks import blocks_for
from disagg.plan.errors import ConfigError, FileError
from disagg.run.model.model import Model
from disagg.trace.files import whole
from disagg.trace.results import Run

FILE = "my_disagg.py"
HEAD = """# My own engine. check_mine keeps here what is right, piece by piece.
from __future__ import annotations

import math

import torch
"""
PIECE = "\n\n# piece: "
EMPTY = {"RESUME", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "NOP"}  # what a body of `...` compiles to


def check_mine(name: str, piece: Any) -> Verdict:
    """Is this piece right? Says what is wrong first, or keeps it."""
    if name not in CHECKS:
        raise ValueError(f"there is no piece {name!r}; known: {', '.join(CHECKS)}")
    if wrong := wrong_with(name, piece):
        if not callable(piece) or any(map(is_empty, parts(piece))):
            return Verdict(name, False, wrong)
        tried(name)
        return Verdict(name, False, f'{wrong}. hint("{name}") helps.')
    return Verdict(name, True, _keep(name, piece) + ("" if remember(piece_name(name)) else NOT_KEPT))


def wrong_with(name: str, piece: Any) -> str | None:
    """What is wrong with a piece; None: nothing."""
    if not callable(piece):
        return f"give the piece itself, as in check_mine({name!r}, …); got {piece!r}"
    if empty := next((part.__qualname__ for part in parts(piece) if is_empty(part)), None):
        return f"{empty} is still empty; the ready one stands in"
    try:
        return CHECKS[name](piece)
    except Exception as error:
        own = {part.__code__ for part in parts(piece)}
        where = [f" in {step.function}, line {step.lineno}" for step in inspect.trace() if step.frame.f_code in own]
        return f"it raises {type(error).__name__}{where[-1] if where else ''}: {error}"


def parts(piece: Any) -> list[FunctionType]:
    """A function itself, or the functions of a class."""
    return [part for part in (vars(piece).values() if inspect.isclass(piece) else [piece]) if inspect.isfunction(part)]


def is_empty(function: FunctionType) -> bool:
    return {step.opname for step in dis.get_instructions(function)} <= EMPTY


def usable(name: str, piece: Any) -> Any:
    return READY[name] if wrong_with(name, piece) else piece


# ---- the file --------------------------------------------------------------------------------------------------------


def source_of(piece: Any) -> str:
    """As `inspect.getsource`, which does not find a class of a notebook."""
    lines, _ = inspect.findsource(parts(piece)[0])
    kinds = ast.FunctionDef | ast.ClassDef
    tree = ast.parse(textwrap.dedent("".join(lines)))
    found = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == piece.__name__]
    return textwrap.dedent("".join(lines[found[-1].lineno - 1 : found[-1].end_lineno]))


def _keep(name: str, piece: Any) -> str:
    """Writes the piece into the file, and looks whether it is right there too."""
    try:
        source = source_of(piece)
    except (OSError, SyntaxError, IndexError) as error:
        return f"right; its source can't be found ({type(error).__name__}), so {FILE} does not have it"
    before = sources()
    try:
        _write(before | {name: source})
    except FileError:
        return f"right; {FILE} can't be written here, so the next chapter takes the ready one"
    try:
        wrong = wrong_with(name, _run()[name])
    except Exception as error:
        wrong = f"it raises {type(error).__name__}: {error}"
    if wrong:
        _write(before)
        return f"right; but not kept, for alone {wrong}. What it uses has to stand in the same class or function"
    return f"right, in {lines_of(source)} lines, kept in {FILE}"


def _write(pieces: dict[str, str]) -> None:
    with whole(FILE) as file:
        file.write((HEAD + "".join(f"{PIECE}{name}\n{source.strip()}\n" for name, source in pieces.items())).encode())


def sources() -> dict[str, str]:
    if not Path(FILE).is_file():
        return {}
    found = re.split(r"^# piece: (\w+)\n", Path(FILE).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name: source.strip() + "\n" for name, source in zip(found[1::2], found[2::2], strict=True)}


def kept() -> dict[str, Any]:
    """The pieces in the file. FileError where it does not run."""
    try:
        return _run()
    except Exception as error:
        raise FileError(f"{FILE} does not run ({type(error).__name__}: {error}); mend it, or delete it") from None


def own(name: str) -> Any:
    """The file's piece where it is right, else the ready one."""
    return usable(name, kept().get(name, READY[name]))


def _run() -> dict[str, Any]:
    known = sources()
    names = runpy.run_path(FILE) if known else {}
    return {name: names[re.findall(r"^(?:def|class) (\w+)", known[name], re.MULTILINE)[-1]] for name in known}


def lines_of(source: str) -> int:
    return sum(bool(line.strip()) for line in source.splitlines())


def my_lines() -> str:
    """How many lines the file has of each piece, and which ready ones stand in."""
    counts = {name: lines_of(source) for name, source in sources().items() if name in CHECKS}
    written = ", ".join(f"{name} {count}" for name, count in counts.items()) or "none yet"
    open_ones = ", ".join(name for name in CHECKS if name not in counts) or "none"
    return f"lines of yours: {sum(counts.values())} ({written}); ready ones that stand in: {open_ones}"


# ---- the engine ------------------------------------------------------------------------------------------------------


def write(model: Model, prompt: list[int], new: int, cache: Callable[[], Any] | None = None) -> bridge.Written:
    """Greedy tokens of the real model, with a student's cache, or without one."""
    return bridge.write(model, prompt, new, cache and usable("cache", cache))


def steps(next_batch: Callable, needs: list[int], places: int) -> list[list[int]]:
    """Who is in each step, where answer n needs `needs[n]` of them."""
    return [rows for rows in steps_of(usable("batch", next_batch), needs, places) if rows]


def landings(queue: Callable[[], Any], ring: Callable[[], Any] | None = None) -> dict[int, int]:
    """When (ms) the last layer of each request landed, in the hand-off that `check_mine` plays."""
    hops = Hops(queue, ring)
    hand_off(hops, "staged" if ring else "streamed")
    return {request: end // 1_000_000 for lane, request, _, _, end in hops.copies if lane != "down"}


@dataclass(frozen=True)
class MyServed:
    """What a student's engine wrote, when, and what the package's `simulate` needs for the same work."""

    rows: list[MyRow]
    twin: Run
    mine: tuple[str, ...]  # pieces of the student's

    def __repr__(self) -> str:
        """A line a request: ms of token 1, of token 2 and of the last one, and those of simulate."""
        lines = ["request  tokens  token 1     token 2     last (ms; simulate in brackets)"]
        for row, result in zip(self.rows, self.twin.results, strict=True):
            pairs = list(zip(row.times_ns, result.token_times_ns, strict=False))
            shown = [pairs[0], pairs[min(1, len(pairs) - 1)], pairs[-1]]
            times = "  ".join(f"{a / 1e6:4.0f} ({b / 1e6:.0f})" for a, b in shown)
            lines.append(f"{row.id:7}  {len(row.tokens):6}  {times}")
        return "\n".join(lines)


def serve(
    pieces: dict[str, Any], prompts: Sequence[list[int]], model: Model, new: int = 12, **setting: Any
) -> MyServed:
    """Runs prompts through the pieces; ready ones stand in for those that are missing or not right yet."""
    if new < 2:
        raise ConfigError(f"new is {new}; an answer of one token never leaves prefill, so ask for 2 or more")
    mine = {name: piece for name, piece in pieces.items() if not wrong_with(name, piece)}
    how = MySetting(**setting)
    if not all(prompts) or blocks_for(max(map(len, prompts)), SIZE) > how.blocks or how.places < 1:
        sizes = f"prompts of {[len(prompt) for prompt in prompts]} tokens, {how.blocks} blocks, {how.places} places"
        raise ConfigError(f"{sizes}: each prompt needs a token, its blocks of {SIZE} tokens, and a place")
    with torch.inference_mode():
        rows = MyServing({**READY, **mine}, model, how).serve(prompts, new)
    return MyServed(rows, twin(rows, model, how), tuple(mine))


def reference(model: Model, prompts: Sequence[list[int]], new: int = 12) -> list[list[int]]:
    """What Hugging Face's own `generate` answers, greedily."""
    module: Any = model.reference()
    with torch.inference_mode():
        how = dict(max_new_tokens=new, do_sample=False, pad_token_id=0)
        ids = [torch.tensor([prompt]) for prompt in prompts]
        return [module.generate(x, attention_mask=torch.ones_like(x), **how)[0, x.shape[1] :].tolist() for x in ids]
