"""Text to token ids and back by a folder's tokenizer. No chat template is rendered except SmolLM2's, whose file is
pinned."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from disagg.plan.checks import is_text
from disagg.plan.errors import ModelError, RequestError
from disagg.run.model.text import NO_TEMPLATE, first_line

HOLE = "\0"  # marks the place of the user's text in a template
MOST_PENDING = 32  # tokens


class TokenizerText:
    """A Hugging Face tokenizer of a local folder; `chat` says whether its template may be rendered.

    A text that spells a control token stays text: only the template and the tokenizer's own frame add control tokens.
    """

    def __init__(self, folder: Path, chat: bool) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, split_special_tokens=True
            )
            self._tokenizer.decode(self._tokenizer("a")["input_ids"])  # a broken tokenizer fails in use
            self._special = special_tokens(self._tokenizer)
            self._spelled = spelled_out(self._tokenizer, {**self._special, **framing_tokens(self._tokenizer)})
        except Exception as error:  # tokenizers raise bare Exceptions
            raise ModelError(f"{folder.name}: the tokenizer can't be read: {first_line(error)}") from None
        self._chat = chat
        self._alone: dict[int, str | None] = {}
        self.drops_template = not chat and bool(self._tokenizer.chat_template or list(folder.glob("*chat_template*")))
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self._joins_bytes = type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"
        eos = self._tokenizer.eos_token_id
        self.eos_ids: tuple[int, ...] = () if eos is None else (eos,)

    def encode(self, text: str, chat: bool = True) -> list[int]:
        """Token ids; with chat, and if the template is pinned, as the user's turn of a conversation.

        RequestError for what the tokenizer can't take.
        """
        return self.conversation([("user", text)]) if chat and self._chat else self._plain(text)

    def conversation(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Token ids of turns (role, text), up to where the model's own begins. RequestError as of `encode`, and where
        no template is rendered."""
        if not self._chat:
            raise RequestError(NO_TEMPLATE)
        marked, texts = [{"role": role, "content": HOLE} for role, _ in turns], (text for _, text in turns)
        frame = self._tokenizer.apply_chat_template(marked, add_generation_prompt=True, tokenize=False)
        ids, found = {spelling: token for token, spelling in self._special.items()}, list[int]()
        for part in filter(None, re.split("(" + "|".join(map(re.escape, ids)) + ")", frame)):
            words = re.sub(HOLE, lambda _: next(texts), part)  # also of what spells a control token
            found += [ids[part]] if part in ids else self._plain(words, frame=False)
        return found

    def _plain(self, text: str, frame: bool = True) -> list[int]:
        """Ids of a text that holds no control tokens; with frame, between those that the tokenizer puts around it."""
        with guarded("the prompt is no valid text for the model's tokenizer: "):
            found = self._tokenizer(text, add_special_tokens=frame, return_special_tokens_mask=True)
        pairs = zip(found["input_ids"], found["special_tokens_mask"], strict=True)
        return [token for one, added in pairs for token in ([one] if added else self._spelled.get(one, [one]))]

    def decode(self, ids: list[int]) -> str:
        """Text without special tokens, up to the first id that can't be decoded."""
        return self.read(ids)[0]

    def read(self, ids: list[int]) -> tuple[str, str | None]:
        """Text as the pieces of a detokenizer join to, and in words why it stops at an id that can't be decoded."""
        if self._joins_bytes:  # the same text at a tenth of the work
            with contextlib.suppress(RequestError):  # the pieces find the id
                return self.raw(ids), None
        pieces = self.detokenizer()
        text = "".join([*map(pieces.push, ids), pieces.flush()])
        return text, pieces.error

    def raw(self, ids: list[int]) -> str:
        """What the tokenizer makes of these ids at once; RequestError for any error it raises."""
        with guarded():
            text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            return text if is_text(text) else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def alone(self, token: int) -> str | None:
        """Text of one token by itself; None where decoding skips it: a special one, or an id of no token."""
        if token not in self._alone:
            self._alone[token] = ""
            with contextlib.suppress(RequestError), guarded():  # among others it may have text
                skipped = token in self._special or self._tokenizer.convert_ids_to_tokens(token) is None
                self._alone[token] = None if skipped else self.raw([token])
        return self._alone[token]

    def detokenizer(self) -> "TokenizerDetokenizer":
        return TokenizerDetokenizer(self)


class TokenizerDetokenizer:
    """Decodes the pending tokens behind one token of context, and hands out all but what may be half a character.

    The context is the last token with text of its own: behind it a decoder strips no space as at a text's start, and no
    broken character reaches back into text that is out. An unfinished character shows as at most three U+FFFD.
    `error` names the id that can't be decoded; no text comes after it.
    """

    def __init__(self, text: TokenizerText) -> None:
        self._text, self._sent = text, 0
        self._context: list[int] = []
        self._pending: list[int] = []
        self.error: str | None = None

    def push(self, token: int) -> str:
        try:
            if self.error is not None or self._text.alone(token) is None:
                return ""
            text = self._tail([*self._pending, token])
            self._pending.append(token)
            return self._hand_out(text)
        except RequestError as error:
            self.error = f"token id {token} can't be decoded by the model's tokenizer: {error}"
            return ""

    def flush(self) -> str:
        pending, self._pending = self._pending, []
        with contextlib.suppress(RequestError):  # `error` names the id
            return self._tail(pending)[self._sent :]
        return ""

    def _tail(self, ids: list[int]) -> str:
        skip = len(self._text.alone(self._context[0]) or "") if self._context else 0
        return self._text.raw(self._context + ids)[skip:] if ids else ""

    def _hand_out(self, text: str) -> str:
        held = min(3, len(text) - len(text.rstrip("\ufffd")))
        piece = text[self._sent : len(text) - held]
        self._sent += len(piece)
        if text and not held:
            own = self._text.alone(self._pending[-1])
            self._context = [self._pending[-1]] if own and "\ufffd" not in own else self._context
            self._pending, self._sent = [], 0
        elif len(self._pending) > 3 and self._sent:
            return piece + self._cut(text[: self._sent])
        elif len(self._pending) > MOST_PENDING:
            self._pending = self._pending[-3:]
        return piece

    def _cut(self, out: str) -> str:
        """Drop the tokens whose text is out; those behind them may make a character of their own."""
        for count in range(len(self._pending) - 1, 0, -1):
            if self._tail(self._pending[:count]) == out:
                self._pending, self._sent = self._pending[count:], 0
                return self._hand_out(self._tail(self._pending))
        if len(self._pending) > MOST_PENDING:
            self._pending = self._pending[-3:]
            self._sent = len(self._tail(self._pending).rstrip("\ufffd"))
        return ""


@contextlib.contextmanager
def guarded(words: str = "") -> Iterator[None]:
    """RequestError for any error of a tokenizer: a compiled one's panic is no Exception."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise RequestError(words + first_line(error)) from None


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Spellings of the tokens that decoding leaves out."""
    found = {token: str(entry) for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return found | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def framing_tokens(tokenizer: Any) -> dict[int, str]:
    """Spellings of the tokens that it puts around every text, perhaps without calling them special."""
    found = tokenizer("", return_special_tokens_mask=True)
    ids = [one for one, added in zip(found["input_ids"], found["special_tokens_mask"], strict=True) if added]
    return dict(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True))


def spelled_out(tokenizer: Any, control: dict[int, str]) -> dict[int, list[int]]:
    """For a vocabulary that holds a control token as a word: ids of its characters, unknown ones where it has none."""
    unknown, found = tokenizer.unk_token_id, {}
    for token, spelling in control.items():
        ids = [unknown if one in control else one for one in tokenizer.convert_tokens_to_ids(list(spelling))]
        found[token] = [one for one in ids if one is not None]
    return {token: ids for token, ids in found.items() if token != unknown}  # that one stands for text
