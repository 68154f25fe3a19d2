"""The command line: `python -m disagg --help` lists the commands."""

import os

from rich.markup import escape

from disagg.plan.errors import DisaggError
from disagg.show.commands import learn, measure, told

app = told.app
__all__ = ["app", "learn", "main", "measure"]  # the commands are there once their modules are


def main():
    """An error that a user can cause is a sentence here, not a traceback."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded at run time
    try:
        app(standalone_mode=True)
    except DisaggError as error:
        told.console.print(f"[bold]{type(error).__name__}[/bold]: {escape(str(error))}", highlight=False)
        raise SystemExit(1) from None
