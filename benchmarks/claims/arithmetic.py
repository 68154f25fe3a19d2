"""Arithmetic over the costs of the virtual clock and the sizes of the embedded model: what a reader can do by hand."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from disagg.plan.batching import Composer
from disagg.plan.errors import FileError
from disagg.trace.law import simplest_hidden
from disagg.twin.model_shapes import sizes_of
from disagg.twin.simulated_engine import Speeds

OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


def names() -> dict[str, float | Callable]:
    """What an expression may name; times in ms."""
    speeds, model = Speeds(), sizes_of("smollm2", "float32")
    return {
        "pass_ms": (speeds.prefill_pass + speeds.tail) / 1e6,  # without its tokens
        "token_ms": speeds.prefill_token / 1e6,
        "step_ms": speeds.step / 1e6,
        "row_ms": speeds.step_row / 1e6,
        "slot_ms": speeds.step_token / 1e6,
        "token_bytes": model.token_bytes,
        "layers": model.layers,
        "weights": model.weights + model.head_weights,
        "gain": Composer.GAIN,
        "first": Composer.FIRST,
        "H": simplest_hidden,
        "max": max,
        "min": min,
        "ceil": math.ceil,
    }


def evaluated(expressions: Mapping[str, str]) -> dict[str, float]:
    """Each expression's value. Numbers, + − × /, the names above and nothing else. FileError."""
    known = names()
    try:
        return {name: _value(ast.parse(text, mode="eval").body, known) for name, text in expressions.items()}
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise FileError(f"{dict(expressions)} cannot be worked out: {type(error).__name__}: {error}") from None


def _value(node: ast.AST, known: Mapping) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return known[name]
        case ast.BinOp(left=left, op=op, right=right):
            return OPERATORS[type(op)](_value(left, known), _value(right, known))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, known)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return known[name](*(_value(arg, known) for arg in args))
    raise TypeError(f"{type(node).__name__} is not arithmetic")
