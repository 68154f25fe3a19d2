"""Valid files made wrong: byte by byte, as JSON trees, and by splicing in what has broken readers; a seed decides."""

import gzip
import json
from random import Random
from typing import Any

#: As text: what a page, a picture or a console might take for more than text.
TEXTS = (
    "<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "$\\frac$", "${7*7}", "{{7*7}}", "[bold]x[/",
    "../../etc/passwd", "C:\\nul", "\x1b[31m", "a\nb", "\0", "\u202e", "\ud800", "\ufeff", "😀" * 50, "x" * 5000, "",
)  # fmt: skip
NUMBERS = (0, -1, 1, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**18, 10**400, 0.5, -0.0, 1e308, 5e-324)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": 0}, [[[[[[[[[]]]]]]]]], [0] * 1000)
VALUES = (*TEXTS, *NUMBERS, *OTHERS)
#: As bytes, spliced in anywhere.
FRAGMENTS = (
    b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x80\x04\x95", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b'"', b"\\", b"\\ud800", b"\n", b"\r\n", b"}{", b",,", b"\x1f\x8b\x08\x00",
    b"A" * 70_000, b"<img src=x onerror=alert(1)>", b"</script>", b"$\\frac$", b"../" * 20,
)  # fmt: skip


def mutated(content: bytes, draw: Random) -> bytes:
    """The file with one to four things wrong; what is packed is changed inside, or as it lies there."""
    packed = content.startswith(b"\x1f\x8b")
    if packed and draw.random() < 0.7:
        return gzip.compress(mutated(gzip.decompress(content), draw), 1, mtime=0)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        content = draw.choice((in_a_line, in_a_line, in_a_line, with_other_lines, in_bytes, spliced))(content, draw)
    return content


def other_numbers(content: bytes, draw: Random) -> bytes:
    """JSON lines that say something else and are still well formed: a few numbers take the place of others."""
    packed = content.startswith(b"\x1f\x8b")
    lines = (gzip.decompress(content) if packed else content).splitlines(keepends=True)
    for _ in range(draw.choice((1, 1, 2, 5, 20))):
        index = draw.randrange(1, max(2, len(lines) - 1))
        row = json.loads(lines[index])
        names = [name for name, value in row.items() if type(value) is int]
        if names:
            name = draw.choice(names)
            row[name] = draw.choice((0, 1, row[name] + 1, max(0, row[name] - 1), 2**62, row[draw.choice(names)]))
            lines[index] = json.dumps(row).encode() + b"\n"
    whole = b"".join(lines)
    return gzip.compress(whole, 1, mtime=0) if packed else whole


def in_bytes(content: bytes, draw: Random) -> bytes:
    """A bit, a byte or a run of bytes changed, lost or doubled; or the end cut off."""
    if not content:
        return bytes(draw.randrange(256) for _ in range(8))
    start = draw.randrange(len(content))
    stop = start + draw.choice((1, 1, 8, 100))
    piece = content[start:stop]
    match draw.randrange(5):
        case 0:
            piece = bytes([piece[0] ^ 1 << draw.randrange(8)]) + piece[1:]
        case 1:
            piece = bytes(draw.randrange(256) for _ in piece)
        case 2:
            piece = b""
        case 3:
            piece *= 2
        case 4:
            return content[:start]
    return content[:start] + piece + content[stop:]


def spliced(content: bytes, draw: Random) -> bytes:
    """A fragment in between, or in place of some bytes."""
    start = draw.randrange(len(content) + 1)
    return content[:start] + draw.choice(FRAGMENTS) + content[start + draw.choice((0, 0, 1, 20)) :]


def with_other_lines(content: bytes, draw: Random) -> bytes:
    """A line lost, doubled, or in another's place."""
    lines = content.splitlines(keepends=True)
    if not lines:
        return content
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.randrange(3)):
        lines.insert(draw.randrange(len(lines) + 1), line)
    return b"".join(lines)


def in_a_line(content: bytes, draw: Random) -> bytes:
    """One line's JSON changed as a tree; bytes where it is none. A file without line ends is one line."""
    lines = content.splitlines(keepends=True)
    index = draw.choice((0, len(lines) - 1, draw.randrange(len(lines)))) if lines else 0
    try:
        tree = json.loads(lines[index])
        line = json.dumps(changed_tree(tree, draw)).encode() + b"\n" * lines[index].endswith(b"\n")
    except (ValueError, IndexError, RecursionError):
        whole = _whole_tree(content, draw)
        return in_bytes(content, draw) if whole is None else whole
    return b"".join((*lines[:index], line, *lines[index + 1 :]))


def _whole_tree(content: bytes, draw: Random) -> bytes | None:
    """A file that is one JSON text over several lines, changed."""
    try:
        return json.dumps(changed_tree(json.loads(content), draw)).encode()
    except (ValueError, RecursionError):
        return None


def changed_tree(tree: Any, draw: Random) -> Any:
    """One place of the tree holds something else, is gone, is doubled, or bears another name."""
    if not isinstance(tree, dict | list) or not tree or draw.random() < 0.1:
        return draw.choice(VALUES)
    key = draw.choice(list(tree)) if isinstance(tree, dict) else draw.randrange(len(tree))
    inner = tree[key]
    if isinstance(inner, dict | list) and draw.random() < 0.7:
        tree[key] = changed_tree(inner, draw)
        return tree
    match draw.randrange(8):
        case 0:
            del tree[key]
        case 1 if isinstance(tree, dict):
            tree[draw.choice((*TEXTS[:8], *tree))] = tree.pop(key)
        case 1 | 2 if isinstance(tree, list):
            tree.insert(draw.randrange(len(tree) + 1), inner)
        case 3 if type(inner) is int:
            tree[key] = inner + draw.choice((-1, 1, 10**9, -inner))
        case 4:
            tree[key] = tree[draw.choice(list(tree))] if isinstance(tree, dict) else draw.choice(tree)
        case _:
            tree[key] = draw.choice(VALUES)
    return tree
