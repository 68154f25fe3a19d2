"""A door's server: uvicorn on a thread of its own, on 127.0.0.1.

with Engine(Config.preset("streamed")) as engine, serve(engine) as server:
    print(server.url, server.token)
"""

import asyncio
import os
import re
import secrets
import socket
from collections.abc import Sequence

import uvicorn

from disagg.plan.checks import short
from disagg.plan.errors import EngineError
from disagg.run.engine import Engine
from disagg.run.threads import Joinable
from disagg.serve.door import Door

HOST = "127.0.0.1"
ORIGIN = re.compile(r"https?://[\w.-]+(:\d+)?", re.ASCII)
GRACE_S = 5  # for what is still being sent when it closes


class Server:
    """Close it, or use it in a `with`; the engine stays open."""

    def __init__(self, door: Door, token: str, listening: socket.socket) -> None:
        self.door, self.token = door, token
        self.url = f"http://{HOST}:{listening.getsockname()[1]}/v1"
        config = uvicorn.Config(door.app, log_level="warning", lifespan="off", timeout_graceful_shutdown=GRACE_S)
        self._server, self._socket = uvicorn.Server(config), listening
        self._thread = Joinable(target=self._run, name="disagg serve")
        self._thread.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._server.serve(sockets=[self._socket]))

    def wait(self) -> None:
        """Until it is closed."""
        self._thread.join()

    def close(self) -> None:
        """Takes no more clients, and ends the requests of those that it has."""
        self._server.should_exit = True
        self.door.close()
        self._thread.join()
        self._socket.close()


def open_door(engine: Engine, port: int, token: str | None, origins: Sequence[str]) -> Server:
    """As `disagg.serve.serve` says."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise EngineError("a token is one word of ASCII letters, digits and signs")
    if isinstance(origins, str) or not all(ORIGIN.fullmatch(origin) for origin in origins):
        raise EngineError(f"origins are addresses of pages, as in ['https://chat.example:8080']; got {short(origins)}")
    try:
        listening = socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise EngineError(f"port {port} of {HOST} can't be opened ({words}); take another, or 0 for any") from None
    token = token or secrets.token_urlsafe(24)
    return Server(Door(engine, token, origins), token, listening)
