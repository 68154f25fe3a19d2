"""What a user can cause is one of these, and each message says what happened, with numbers, and what to do."""


class DisaggError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(DisaggError, ValueError):
    """A Config field is unknown, of the wrong type, out of range, or impossible together with another."""


class RequestError(DisaggError, ValueError):
    """A Request can never be served: empty, over the context, foreign token ids, nothing to generate."""


class ModelError(DisaggError, ValueError):
    """A model is refused: pickled weights, remote code, an attention that is not the registered one, wrong logits."""


class ModelWarning(UserWarning):
    """A model's folder asks for something that is not done here: which, and what to do."""


class EngineError(DisaggError, RuntimeError):
    """The engine can't go on: closed, broken by a dead worker, or out of memory."""


class FileError(DisaggError, ValueError):
    """A file can't be read as a recording, or can't be written: where it is wrong, and why."""


class TraceError(FileError):
    """A file can't be read as a trace of arrivals: file, line, and what is wrong there."""


class DifferenceError(DisaggError, ValueError):
    """Two runs can't be compared: they served other requests."""


class PackageError(DisaggError, ImportError):
    """A package that is needed here is not installed in this Python."""

    @classmethod
    def of(cls, error: ModuleNotFoundError) -> "PackageError":
        return cls(
            f"the package {error.name} is not installed in this Python. Choose the kernel of this project "
            "(Kernel → Change Kernel…), or type `make setup` in its folder and restart the kernel",
            name=error.name,
        )
