"""OpenAI's interface over an engine (/v1/completions, /v1/chat/completions, /v1/models), its health and metrics.

Errors of requests have OpenAI's shape. A client that goes away ends its request; bad input ends its own request and
nobody else's.
"""

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from disagg.plan.checks import short
from disagg.plan.errors import DisaggError, RequestError
from disagg.run.engine import Engine
from disagg.run.handle import Handle
from disagg.serve.answer import Answer
from disagg.serve.bodies import Chat, ClientRequest, Completion, read
from disagg.serve.engine_metrics import EngineMetrics, serves

MOST_BYTES, TOKEN_BYTES = 64 << 10, 32  # of a body: so many, and more for each token that the context holds
MOST_OPEN = 512  # requests at a time: each has a thread that reads its answer
MOST_NAMES, NAME = 20, re.compile(r"[\w.-]{1,64}", re.ASCII)  # of ignored fields, that a header can hold
HOSTS = ["127.0.0.1", "localhost"]  # no page of another name reaches it
STATUS_OF = {"rejected": 429, "cancelled": 503, "failed": 500}


class Door:
    """Of one engine, which it does not close."""

    def __init__(self, engine: Engine, token: str, origins: Sequence[str] = ()) -> None:
        """Clients must send `token`; pages of `origins` may ask from a browser."""
        self.engine, self.model = engine, engine.config.model
        self._token, self._numbers, self._began = token, count(1), int(time.time())
        self._metrics, self._open, self._closing = EngineMetrics(engine), set[Answer](), False
        self._taken = 0  # requests that are open, or are being read
        self._most_bytes = MOST_BYTES + TOKEN_BYTES * engine.model.context_limit
        self._reader = ThreadPoolExecutor(1, "disagg serve reads")  # long texts wait for each other, and hold nobody up
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-ignored-fields"],
        )
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
        self.app = Starlette(
            routes=[
                Route("/v1/completions", partial(self._complete, Completion), methods=["POST"]),
                Route("/v1/chat/completions", partial(self._complete, Chat), methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._one_model),
                Route("/metrics", self._measure),
                Route("/health", self._health),
            ],
            middleware=[hosts, cors] if origins else [hosts],
            exception_handlers={
                HTTPException: refused,
                RequestError: bad_request,
                DisaggError: unserved,
                ClientDisconnect: gone,
                Exception: broke,
            },
        )

    def close(self) -> None:
        """Ends all requests, and those that come in this moment."""
        self._closing = True
        self._reader.shutdown(wait=False, cancel_futures=True)
        for answer in list(self._open):
            answer.cancel()

    # ---- routes ------------------------------------------------------------------------------------------------------

    async def _models(self, request: Request) -> Response:
        self._check_token(request)
        return JSONResponse({"object": "list", "data": [self._card]})

    async def _one_model(self, request: Request) -> Response:
        self._check_token(request)
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card)

    @property
    def _card(self) -> dict[str, Any]:
        return dict(id=self.model, object="model", created=self._began, owned_by="disagg")

    async def _measure(self, request: Request) -> Response:
        self._check_token(request)
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def _health(self, request: Request) -> Response:
        """As load generators and supervisors ask it."""
        self._check_token(request)
        if reason := serves(self.engine):
            raise HTTPException(503, reason)
        return Response()

    async def _complete(self, kind: type[Completion] | type[Chat], request: Request) -> Response:
        self._check_token(request)
        if self._taken >= MOST_OPEN:
            raise HTTPException(429, f"{MOST_OPEN} requests are open; ask again later", {"Retry-After": "1"})
        self._taken += 1
        try:
            return await self._open_answer(kind, await self._body_of(request))
        except BaseException:
            self._taken -= 1
            raise

    async def _open_answer(self, kind: type[Completion] | type[Chat], body: bytes) -> "OpenAnswer":
        pools = [worker.pool for worker in self.engine.controller.state.decodes]
        room = min(pool.capacity for pool in pools) * self.engine.config.block_size
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(self._reader, read, kind, body, self.engine.model, room)
        if asked.model:
            self._check_model(asked.model)
        submitted = asyncio.ensure_future(asyncio.to_thread(self.engine.submit, asked.request))
        try:
            handle = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(cancel_it)
            raise
        answer = Answer(handle, asked.stops)
        self._open.add(answer)
        if self._closing:
            answer.cancel()
        shape = (ChatShape if kind is Chat else CompletionShape)(next(self._numbers), self.model)
        return OpenAnswer(answer, asked, shape, self._ended)

    async def _body_of(self, request: Request) -> bytes:
        """Not more of it than is allowed, whatever its length says."""
        found, most = bytearray(), self._most_bytes
        async for piece in request.stream():
            found += piece
            if len(found) > most:
                raise HTTPException(413, f"the body has more than {most:,} bytes", {"Connection": "close"})
        return bytes(found)

    def _ended(self, answer: Answer) -> None:
        self._open.discard(answer)
        self._taken -= 1
        self._metrics.ended(answer.result, answer.finish or answer.result.finish_reason)

    def _check_token(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            words = "the token is missing or wrong; send it as `Authorization: Bearer TOKEN`"
            raise HTTPException(401, words, {"WWW-Authenticate": "Bearer"})

    def _check_model(self, name: str) -> None:
        if name != self.model:
            raise HTTPException(404, f"no model {short(name)} is served here; this engine has {self.model!r}")


def cancel_it(submitted: "asyncio.Future[Handle]") -> None:
    """A request that nobody waits for any more."""
    if submitted.exception() is None:
        submitted.result().cancel()


def ignored_fields(asked: ClientRequest) -> dict[str, str]:
    """The header that names them, as far as a header can."""
    names = [name for name in asked.ignored if NAME.fullmatch(name)][:MOST_NAMES]
    others = len(asked.ignored) - len(names)
    words = ", ".join([*names, *([f"{others} more"] if others else [])])
    return {"x-ignored-fields": words} if words else {}


# ---- errors, in OpenAI's shape ---------------------------------------------------------------------------------------


def error_of(words: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": words, "type": kind, "param": None, "code": None}}


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_of(error.detail), error.status_code, error.headers)


async def bad_request(request: Request, error: Exception) -> Response:
    return JSONResponse(error_of(str(error)), 400)


async def gone(request: Request, error: Exception) -> Response:
    """Nobody reads it: the client went before its body was whole."""
    return Response(status_code=499)


async def broke(request: Request, error: Exception) -> Response:
    return JSONResponse(error_of(f"the server failed with a {type(error).__name__}; see its log", "server_error"), 500)


async def unserved(request: Request, error: Exception) -> Response:
    return JSONResponse(error_of(str(error), "server_error"), 503)


# ---- answers ---------------------------------------------------------------------------------------------------------


class CompletionShape:
    """How answers of /v1/completions look."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def __init__(self, number: int, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{number}", "created": int(time.time()), "model": model}

    def first(self) -> dict[str, Any] | None:
        """Before any text."""
        return None

    def piece(self, text: str, finish: str | None = None) -> dict[str, Any]:
        return self.of(self.part, self.choice(text, finish, whole=False))

    def all(self, text: str, finish: str | None) -> dict[str, Any]:
        return self.of(self.whole, self.choice(text, finish, whole=True))

    def of(self, kind: str, *choices: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": kind, "choices": list(choices)}

    def choice(self, text: str, finish: str | None, whole: bool) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


class ChatShape(CompletionShape):
    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return self.of(self.part, {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})

    def choice(self, text: str, finish: str | None, whole: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"content": text} if text or whole else {}
        said = {"message": {"role": "assistant", **said}} if whole else {"delta": said}
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish}


class OpenAnswer(Response):
    """Sends an answer as it comes, or whole; ends its request where the client has gone."""

    def __init__(
        self,
        answer: Answer,
        asked: ClientRequest,
        shape: CompletionShape,
        ended: Callable[[Answer], None],
    ) -> None:
        self._answer, self._asked, self._shape, self._ended = answer, asked, shape, ended
        self._more = ignored_fields(asked)
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._until_gone(receive))
        try:
            await (self._stream(send) if self._asked.stream else self._send_whole(scope, receive, send))
        except OSError:
            pass  # the client has gone while something was sent
        finally:
            watch.cancel()
            self._answer.cancel()
            async for _ in self._answer:  # to its end, which is within a step
                pass
            self._ended(self._answer)

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._answer.cancel()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = "".join([piece async for piece in self._answer])
        if (finish := self._answer.finish) is None:
            words, status = self._failure()
            response = JSONResponse(words, status)
        else:
            response = JSONResponse({**self._shape.all(text, finish), "usage": self._answer.usage}, headers=self._more)
        await response(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", **self._more}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        async for event in self._events():
            words = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            await send({"type": "http.response.body", "body": f"data: {words}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncIterator[dict[str, Any] | str]:
        if first := self._shape.first():
            yield first
        async for text in self._answer:
            yield self._shape.piece(text)
        if (finish := self._answer.finish) is None:
            yield self._failure()[0]
        else:
            yield self._shape.piece("", finish)
        if self._asked.counts:
            yield {**self._shape.of(self._shape.part), "usage": self._answer.usage}
        yield "[DONE]"

    def _failure(self) -> tuple[dict[str, Any], int]:
        result = self._answer.result
        words = result.error or f"the request was {result.finish_reason}"
        return error_of(words, "server_error"), STATUS_OF.get(result.finish_reason, 500)
