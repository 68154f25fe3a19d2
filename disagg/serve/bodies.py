"""What a client may ask for: bodies of /v1/completions and /v1/chat/completions, as requests of the engine.

Fields and defaults are those of the OpenAI API reference, with vLLM's `ignore_eos`. A field that would change the
answer and that this server has not is refused unless it says what happens anyway; others are ignored, and named.
"""

import json
import secrets
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from disagg.plan.errors import RequestError
from disagg.plan.request import Request
from disagg.run.model.model import Model

MOST_STOPS, MOST_STOP_LETTERS = 4, 256
CHAT_TOKENS = 512  # of an answer where the client names no number and the context has room for them
#: Of fields that would change the answer, the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None, False),
    "top_logprobs": (None, 0), "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}),
    "repetition_penalty": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "min_tokens": (None, 0),
    "tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"]), "audio": (None,),
    "stop_token_ids": (None, []), "prompt_logprobs": (None,), "use_beam_search": (None, False),
}  # fmt: skip


class StreamOptions(BaseModel):
    include_usage: bool = False


class Body(BaseModel):
    """What both have in common; strings are no numbers, and True is none."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False


class Completion(Body):
    prompt: str | list[str] | list[int]
    max_tokens: int | None = 16


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Turn(BaseModel):
    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(Body):
    messages: list[Turn] = Field(min_length=1)
    max_completion_tokens: int | None = None


class Asked(NamedTuple):
    """A client's request, checked as far as its body goes."""

    model: str | None
    request: Request
    stops: tuple[str, ...]
    stream: bool
    counts: bool  # a last event of the stream says how many tokens there were
    ignored: tuple[str, ...]  # fields without a meaning here


def read(kind: type[Completion] | type[Chat], body: bytes, model: Model) -> Asked:
    """RequestError in words for a body that can't be served."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(in_words(error)) from None
    extra = found.model_extra or {}
    for name, value in extra.items():
        if name in NEUTRAL and not any(type(value) in (type(fine), float) and value == fine for fine in NEUTRAL[name]):
            raise RequestError(f"{name} is not supported here: leave it out, or at {json.dumps(NEUTRAL[name][-1])}")
    prompt = prompt_of(found, model)
    temperature = 1.0 if found.temperature is None else found.temperature
    tokens = tokens_of(found, len(prompt), model)
    if tokens < 1:
        raise RequestError(f"max_tokens must be 1 or more; got {tokens}")
    request = Request(
        prompt,
        tokens,
        temperature=temperature,
        top_p=1.0 if found.top_p is None else found.top_p,
        seed=secrets.randbits(48) if found.seed is None and temperature > 0 else found.seed,
        ignore_eos=found.ignore_eos,
    )
    counts = found.stream_options is not None and found.stream_options.include_usage
    return Asked(
        found.model, request, stops_of(found.stop), found.stream, counts, tuple(sorted(set(extra) - set(NEUTRAL)))
    )


def prompt_of(body: Body, model: Model) -> list[int]:
    if isinstance(body, Chat):
        roles = {"developer": "system"}
        return model.text.conversation([(roles.get(turn.role, turn.role), turn.text) for turn in body.messages])
    assert isinstance(body, Completion)
    texts = [part for part in body.prompt if isinstance(part, str)]
    if isinstance(body.prompt, str):
        texts = [body.prompt]
    if len(texts) > 1:
        raise RequestError(f"prompt has {len(texts)} texts; send a request for each")
    return model.encode(texts[0], chat=False) if texts else [part for part in body.prompt if isinstance(part, int)]


def tokens_of(body: Body, prompt: int, model: Model) -> int:
    """How many the answer may have."""
    named = body.max_tokens
    if isinstance(body, Chat) and body.max_completion_tokens is not None:
        named = body.max_completion_tokens
    if named is not None:
        return named
    return max(1, min(CHAT_TOKENS, model.context_limit - prompt))


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MOST_STOPS or not all(1 <= len(text) <= MOST_STOP_LETTERS for text in found):
        raise RequestError(f"stop takes up to {MOST_STOPS} texts of 1 to {MOST_STOP_LETTERS} letters")
    return found


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.islower())
    return f"{where}: {first['msg']}" if where else f"the body is no JSON object that fits: {first['msg']}"
