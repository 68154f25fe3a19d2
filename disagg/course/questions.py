"""The questions at a chapter's end: options, and for each of them why it is right or wrong."""

from dataclasses import dataclass

LETTERS = "abcd"


@dataclass(frozen=True)
class Question:
    """`options` are (what it says, why it is right or wrong), lettered from a on."""

    text: str
    options: tuple[tuple[str, str], ...]
    right: str  # a letter

    @property
    def letters(self) -> str:
        return LETTERS[: len(self.options)]

    def lettered(self) -> list[tuple[str, str]]:
        """Each option as it is shown, and its letter."""
        return [(f"{letter}) {said}", letter) for letter, (said, _) in zip(self.letters, self.options, strict=True)]

    def why(self, letter: str) -> str:
        return self.options[self.letters.index(letter)][1]


def ask(right: str, text: str, *options: str) -> Question:
    """`options`: what the first one says, why it is right or wrong, what the next one says, …"""
    return Question(text, tuple(zip(options[::2], options[1::2], strict=True)), right)
