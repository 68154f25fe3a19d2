"""Text to token ids and back: what a model needs of it, and the plainest way."""

import codecs
from collections.abc import Sequence
from typing import Protocol

from disagg.plan.errors import RequestError

NO_TEMPLATE = "no chat template of this model is rendered, only smollm2's; ask it with a plain prompt"


class Detokenizer(Protocol):
    """Text of tokens as they come; `error` names an id that can't be decoded, after which no text comes."""

    error: str | None

    def push(self, token: int) -> str: ...
    def flush(self) -> str: ...


class Text(Protocol):
    """`drops_template`: the folder has a chat template, which is not rendered."""

    drops_template: bool
    eos_ids: tuple[int, ...]

    def encode(self, text: str, chat: bool = True) -> list[int]: ...
    def conversation(self, turns: Sequence[tuple[str, str]]) -> list[int]: ...  # (role, text) of each
    def decode(self, ids: list[int]) -> str: ...
    def read(self, ids: list[int]) -> tuple[str, str | None]: ...  # text, and which id stopped the decoding
    def detokenizer(self) -> Detokenizer: ...


class ByteText:
    """One token a byte, for the `tiny` model; ids above 255 have no text."""

    drops_template = False
    eos_ids: tuple[int, ...] = (256,)

    def encode(self, text: str, chat: bool = True) -> list[int]:
        """UTF-8 bytes; chat changes nothing."""
        return list(text.encode("utf-8"))

    def conversation(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        raise RequestError(NO_TEMPLATE)

    def decode(self, ids: list[int]) -> str:
        """Text of the bytes, with U+FFFD for what is no UTF-8."""
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")

    def read(self, ids: list[int]) -> tuple[str, None]:
        """Text, and None: no id stops the decoding."""
        return self.decode(ids), None

    def detokenizer(self) -> "ByteDetokenizer":
        return ByteDetokenizer()


class ByteDetokenizer:
    """Bytes as they come; half a character waits for its other half."""

    error: str | None = None

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that this token completes, perhaps none."""
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        """What is left, with U+FFFD for a character that never came to its end."""
        return self._decoder.decode(b"", final=True)


def first_line(error: BaseException) -> str:
    """An error's first line: enough to know the cause, without frames that would hold memory."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
