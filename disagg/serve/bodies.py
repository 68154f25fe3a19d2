"""What a client may ask for: bodies of /v1/completions and /v1/chat/completions, as requests of the engine.

Fields and defaults are those of the OpenAI API reference, with vLLM's `ignore_eos`. A field that would change the
answer and that this server has not is refused unless it says what happens anyway; others are ignored, and named.
"""

import json
import secrets
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from disagg.plan.errors import RequestError
from disagg.plan.request import Request
from disagg.run.model.model import Model

MOST_STOPS, MOST_STOP_LETTERS = 4, 256
CHAT_TOKENS, COMPLETION_TOKENS = 512, 16  # of an answer where the client names no number, as far as there is room
#: Of fields that would change the answer, the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logprobs": (None, False),
    "top_logprobs": (None, 0), "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}),
    "repetition_penalty": (None, 1), "top_k": (None, 0, -1), "min_p": (None, 0), "min_tokens": (None, 0),
    "tools": (None, []), "functions": (None, []), "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"]), "audio": (None,),
    "stop_token_ids": (None, []), "prompt_logprobs": (None,), "use_beam_search": (None, False),
    "function_call": (None, "none"), "include_stop_str_in_output": (None, False), "bad_words": (None, []),
    "allowed_token_ids": (None,), "truncate_prompt_tokens": (None,), "prompt_embeds": (None,), "chat_template": (None,),
    "continue_final_message": (None, False), "add_generation_prompt": (None, True), "structured_outputs": (None,),
    "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None,), "guided_grammar": (None,),
}  # fmt: skip


#: Of a message of a conversation likewise.
NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "tool_calls": (None, []),
    "function_call": (None,),
    "refusal": (None,),
    "audio": (None,),
}


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class First(FailFast):
    """The first thing that is wrong in a list is enough: millions of errors would cost gigabytes."""

    __hash__ = object.__hash__  # which unions ask for before Python 3.14


Texts = Annotated[list[str], First()]
Ids = Annotated[list[int], First()]


class Body(BaseModel):
    """What both have in common; strings are no numbers, and True is none."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    ignore_eos: bool | None = False


class Completion(Body):
    prompt: str | Texts | Ids | Annotated[list[Ids], First()]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], First()]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class Chat(Body):
    messages: Annotated[list[Message], First()] = Field(min_length=1)
    max_completion_tokens: int | None = None


class ClientRequest(NamedTuple):
    """A client's request, checked as far as its body goes."""

    model: str | None
    request: Request
    stops: tuple[str, ...]
    stream: bool
    counts: bool  # a last event of the stream says how many tokens there were
    ignored: tuple[str, ...]  # fields without a meaning here


def read(kind: type[Completion] | type[Chat], body: bytes, model: Model, room: int) -> ClientRequest:
    """RequestError in words for a body that can't be served; `room`: tokens that a request may have in a K/V pool."""
    try:
        found = kind.model_validate_json(body)
    except ValidationError as error:
        raise RequestError(in_words(error)) from None
    ignored = unknown(found.model_extra, NEUTRAL)
    if isinstance(found, Chat):
        for message in found.messages:
            ignored |= {f"messages.{name}" for name in unknown(message.model_extra, NEUTRAL_IN_MESSAGES)}
    prompt = prompt_of(found, model)
    tokens = tokens_of(found, min(model.context_limit, room) - len(prompt))
    temperature = 1.0 if found.temperature is None else found.temperature
    request = Request(
        prompt,
        tokens,
        temperature=temperature,
        top_p=1.0 if found.top_p is None else found.top_p,
        seed=secrets.randbits(48) if found.seed is None and temperature > 0 else found.seed,
        ignore_eos=bool(found.ignore_eos),
    )
    counts = found.stream_options is not None and bool(found.stream_options.include_usage)
    return ClientRequest(found.model, request, stops_of(found.stop), bool(found.stream), counts, tuple(sorted(ignored)))


def unknown(fields: dict[str, Any] | None, neutral: dict[str, tuple[Any, ...]]) -> set[str]:
    """Fields without a meaning here; RequestError for those that would change the answer."""
    for name, value in (fields or {}).items():
        if name in neutral and not any(same(value, fine) for fine in neutral[name]):
            raise RequestError(f"{name} is not supported here: leave it out, or at {json.dumps(neutral[name][-1])}")
    return set(fields or ()) - set(neutral)


def same(value: object, other: object) -> bool:
    """Equal; but True is no 1, nor 0.0 False."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def prompt_of(body: Body, model: Model) -> list[int]:
    if isinstance(body, Chat):
        roles = {"developer": "system"}
        return model.text.conversation([(roles.get(each.role, each.role), each.text) for each in body.messages])
    assert isinstance(body, Completion)
    prompt: Any = body.prompt
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise RequestError(f"prompt has {len(prompt)} prompts; send a request for each")
        [prompt] = prompt
    return model.encode(prompt, chat=False) if isinstance(prompt, str) else prompt


def tokens_of(body: Body, room: int) -> int:
    """How many the answer may have."""
    named = body.max_tokens
    if isinstance(body, Chat) and body.max_completion_tokens is not None:
        named = body.max_completion_tokens
    if named is None:
        named = max(1, min(CHAT_TOKENS if isinstance(body, Chat) else COMPLETION_TOKENS, room))
    if named < 1:
        raise RequestError(f"max_tokens must be 1 or more; got {named}")
    return named


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    found = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(found) > MOST_STOPS or not all(1 <= len(text) <= MOST_STOP_LETTERS for text in found):
        raise RequestError(f"stop takes up to {MOST_STOPS} texts of 1 to {MOST_STOP_LETTERS} letters")
    return found


def in_words(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = {name for kind in (Completion, Chat, Message, TextPart, StreamOptions) for name in kind.model_fields}
    where = ".".join(
        str(part) for part in first["loc"] if isinstance(part, int) or part in names
    )  # no kinds of a union
    return f"{where}: {first['msg']}" if where else f"the body is no JSON object that fits: {first['msg']}"
