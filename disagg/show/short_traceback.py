"""In a notebook an error of this package stands under the lines of the cell: what it raised inside says nothing more.
Plain Python keeps the whole traceback.
"""

import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from disagg.plan.errors import DisaggError

#: Whose frames go: this package, the standard library, and installed packages.
OURS = (str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))


def render(error: DisaggError) -> list[str]:
    """What IPython prints for it."""
    from IPython import get_ipython

    view = get_ipython().InteractiveTB
    frames = list(traceback.walk_tb(error.__traceback__))
    kept: TracebackType | None = None
    for index, (frame, line) in reversed(list(enumerate(frames))):
        if index < view.tb_offset or not frame.f_code.co_filename.startswith(OURS):
            kept = TracebackType(kept, frame, frame.f_lasti, line)
    return view.structured_traceback(type(error), error, kept)
