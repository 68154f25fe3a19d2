"""A door for clients: an engine behind OpenAI's HTTP interface, on this machine alone. Needs the extra `serve`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from disagg.plan.errors import PackageError

if TYPE_CHECKING:
    from disagg.run.engine import Engine
    from disagg.serve.server import Server


def serve(engine: "Engine", port: int = 0, token: str | None = None, origins: Sequence[str] = ()) -> "Server":
    """Opens a door to an engine on a port of 127.0.0.1, any free one for 0. Clients send `token`, made here where none
    is given; pages of `origins` may ask from a browser.

        with Engine(Config.preset("streamed")) as engine, serve(engine) as server:
            print(server.url, server.token)

    EngineError where the port is taken; PackageError without the extra `serve`.
    """
    try:
        from disagg.serve.server import open_door
    except ModuleNotFoundError as error:
        words = f"serving over HTTP needs the package {error.name}: `pip install -e '.[serve]'`, or `make serve`"
        raise PackageError(words, name=error.name) from None
    return open_door(engine, port, token, origins)
