"""The errors that a user can cause. Each message says what happened, with numbers, and what to do."""


class DisaggError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(DisaggError, ValueError):
    """A Config field is unknown, of the wrong type, out of range, or impossible together with another."""


class RequestError(DisaggError, ValueError):
    """A Request can never be served: empty, over the context, foreign token ids, nothing to generate."""


class ModelError(DisaggError, ValueError):
    """A model is refused: pickled weights, remote code, an attention that is not the registered one, wrong logits."""


class ModelWarning(UserWarning):
    """A model's folder has a setting that this package does not support."""


class EngineError(DisaggError, RuntimeError):
    """The engine can't go on: closed, broken by a dead worker, or out of memory."""

    run: object = None  # the run so far


class PolicyError(DisaggError, RuntimeError):
    """A policy raised, or returned what the controller can't carry out."""


class FileError(DisaggError, ValueError):
    """A file can't be read as a recording, or can't be written."""


class TraceError(FileError):
    """A file can't be read as a trace of arrivals."""


class DifferenceError(DisaggError, ValueError):
    """Two runs can't be compared: they served other requests."""


class PackageError(DisaggError, ImportError):
    """A package is not installed in this Python, or can't be imported."""


def in_words(error: BaseException) -> str:
    """Its type and its message."""
    return f"{type(error).__name__}: {error}"
