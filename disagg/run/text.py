"""Text to token ids and back. No chat template is rendered except SmolLM2's, whose file is pinned."""

import codecs
from pathlib import Path

from disagg.plan.errors import ModelError


class ByteText:
    """One token a byte, for the `tiny` model; ids above 255 have no text."""

    eos_ids = (256,)
    vocab_size = 257

    def encode(self, text: str, chat: bool = True) -> list[int]:
        """UTF-8 bytes; chat changes nothing."""
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        """Text of the bytes, with U+FFFD for what is no UTF-8."""
        return bytes(token for token in ids if token < 256).decode("utf-8", "replace")

    def detokenizer(self) -> "ByteDetokenizer":
        """A fresh incremental decoder."""
        return ByteDetokenizer()


class TokenizerText:
    """A Hugging Face tokenizer of a local folder; `chat` says whether its template may be rendered."""

    def __init__(self, folder: Path, chat: bool):
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._tokenizer.decode(self._tokenizer("a")["input_ids"])  # what is broken shows in use
        except Exception as error:  # tokenizers raise bare Exceptions
            raise ModelError(f"{folder.name}: the tokenizer can't be read: {first_line(error)}") from None
        self._chat = chat
        eos = self._tokenizer.eos_token_id
        self.eos_ids = () if eos is None else (eos,)

    def encode(self, text: str, chat: bool = True) -> list[int]:
        """Token ids; with chat, and where the template is pinned, as the user's turn of a conversation."""
        if not (chat and self._chat):
            return self._tokenizer(text)["input_ids"]
        turns = [{"role": "user", "content": text}]
        ids = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        return list(ids["input_ids"])

    def decode(self, ids: list[int]) -> str:
        """Text without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def detokenizer(self) -> "TokenizerDetokenizer":
        """A fresh incremental decoder."""
        return TokenizerDetokenizer(self)


class ByteDetokenizer:
    """Bytes as they come; half a character waits for its other half."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Text that this token completes, perhaps none."""
        return self._decoder.decode(bytes([token])) if token < 256 else ""

    def flush(self) -> str:
        """What is left, with U+FFFD for a character that never came to its end."""
        return self._decoder.decode(b"", final=True)


class TokenizerDetokenizer:
    """Decodes a short window of the last tokens again and again and hands out what has become certain.

    An unfinished character shows as at most three U+FFFD at the end, so only those are held back.
    """

    keep = 6  # tokens kept as context once their text is out: spaces between words depend on the neighbour

    def __init__(self, text: TokenizerText):
        self._decode, self._ids, self._sent = text.decode, [], 0

    def push(self, token: int) -> str:
        """Text that this token completes, perhaps none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        held = min(3, len(text) - len(text.rstrip("\ufffd")))
        piece = text[self._sent : len(text) - held]
        self._sent += len(piece)
        if held == 0 and len(self._ids) > 4 * self.keep:
            self._ids = self._ids[-self.keep :]
            self._sent = len(self._decode(self._ids))
        return piece

    def flush(self) -> str:
        """What is left, with U+FFFD for a character that never came to its end."""
        piece = self._decode(self._ids)[self._sent :]
        self._sent += len(piece)
        return piece


def first_line(error: BaseException) -> str:
    """An error's first line: enough to know the cause, without frames that would hold memory."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]
