"""The command line: `python -m disagg --help` lists the commands."""

import os
import sys
from collections.abc import Callable
from typing import Never

import typer

from disagg.cli import learn, measure, output
from disagg.plan.errors import DisaggError

__all__ = ["app", "learn", "main", "measure", "run"]  # the commands are there once their modules are
INTERRUPTED = 130  # as shells count it: 128 and the signal's number

#: Commands that were here once, and the ones of `benchmarks` that took their place.
MOVED = {
    "bench": "cpu|law|notebooks|twin|explorer|gpu|two-gpu",
    **{name: name for name in ("parity", "buglab", "fuzz", "soak", "record-gpu", "figure", "claims")},
}
app = output.app


def _moved(name: str) -> Callable[[], Never]:
    def say_where() -> Never:
        output.say_as_it_is(f"`{name}` has moved: python -m benchmarks {MOVED[name]}")
        raise typer.Exit(2)

    return say_where


for _name in MOVED:
    takes_all = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
    app.command(_name, hidden=True, context_settings=takes_all, add_help_option=False)(_moved(_name))


def main() -> None:
    run(app)


def run(app: typer.Typer) -> Never:
    """What a user or the system can cause is a sentence here, not a traceback: exit code 1, of an interrupt 130; what
    is wrong with the words of the command itself, 2. A reader that has gone away, as `head`, ends it without a word."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded at run time
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name may have letters that this terminal has not
    try:
        _run(app)
    except SystemExit as done:
        if done.code == INTERRUPTED:
            _say("interrupted")
        raise
    except DisaggError as error:
        _say(f"{type(error).__name__}: {error}")
    except BrokenPipeError:
        _drop_output()
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        _say(f"{type(error).__name__}: {where}{error.strerror or error}")
    raise SystemExit(1)


def _run(app: typer.Typer) -> None:
    """The command, and what is still in its buffer."""
    try:
        app()
    finally:
        sys.stdout.flush()


def _say(words: str) -> None:
    """To stdout, or to stderr where stdout is closed."""
    try:
        output.say_plainly(words)
        sys.stdout.flush()
    except OSError:
        _drop_output()
        print(words, file=sys.stderr)


def _drop_output() -> None:
    """Sends the rest of stdout to nowhere: at its end Python writes what is in the buffer, and would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
