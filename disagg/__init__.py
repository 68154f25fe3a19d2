"""A workbench for disaggregated LLM inference: prefill on one device, decode on another, the KV cache in between.

from disagg import Config, Engine, Request, simulate
"""

from disagg.plan.config import Config
from disagg.plan.difference import diff
from disagg.plan.errors import DisaggError, PackageError
from disagg.plan.link import Link
from disagg.plan.request import Request
from disagg.plan.simulator import simulate
from disagg.plan.timeline import Timeline

__all__ = ["Config", "Engine", "Link", "Request", "Timeline", "diff", "simulate"]
__version__ = "0.1.0"


def __getattr__(name: str):
    """Engine needs torch, which plan/ must do without: it is imported when it is first asked for."""
    if name == "Engine":
        try:
            from disagg.run.engine import Engine
        except DisaggError:
            raise
        except Exception as error:  # a broken package raises whatever it likes while it is imported
            raise PackageError.of(error) from (None if isinstance(error, ModuleNotFoundError) else error)

        return Engine
    raise AttributeError(f"module 'disagg' has no attribute {name!r}")
