"""Python for browsers: the npm package `pyodide`, fetched once by npm, checked, never committed.

It is under the Mozilla Public License 2.0 and contains CPython (PSF licence): https://github.com/pyodide/pyodide.
"""

import base64
import hashlib
import subprocess
import tarfile
from pathlib import Path

from disagg.plan.errors import FileError
from disagg.trace.files import folder as made

VERSION = "0.29.5"  # CPython 3.13
INTEGRITY = "sha512-TkYrUv9m8QmfImADKRmpwZulL48E0uUaBSO+dvRQKyAJc0qh9gu7jn8btyHPh3NZm1r2IH2YrJhIr7Q2B9urAw=="
NAMES = ("pyodide.mjs", "pyodide.asm.js", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
BY_HAND = f"or put what `npm pack pyodide@{VERSION}` fetches there yourself"


def files(cache: Path) -> dict[str, bytes]:
    """What a page needs of it, by name. FileError where it can't be had, or is not what was tested."""
    tarball = cache / f"pyodide-{VERSION}.tgz"
    if not tarball.exists():
        _fetch(cache)
    if (found := digest(tarball)) != INTEGRITY:
        raise FileError(
            f"{tarball} is not the Pyodide that was tested: its digest is {found}, not {INTEGRITY}; remove it"
        )
    with tarfile.open(tarball) as archive:
        return {
            name: archive.extractfile(f"package/{name}").read()  # type: ignore[union-attr]  # the digest vouches for each file
            for name in NAMES
        }


def digest(path: Path) -> str:
    """As npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def _fetch(cache: Path) -> None:
    made(cache)
    command = ["npm", "pack", "--silent", "--pack-destination", str(cache), f"pyodide@{VERSION}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise FileError(f"npm is not installed, and {cache} has no Pyodide: install Node.js, {BY_HAND}") from None
    except subprocess.TimeoutExpired:
        raise FileError(f"npm did not fetch Pyodide within ten minutes: try again, {BY_HAND}") from None
    if done.returncode:
        raise FileError(f"npm could not fetch Pyodide: {done.stderr.strip()[-300:]}; try again, {BY_HAND}")
