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

    @classmethod
    def of(cls, error: BaseException) -> "PackageError":
        """From the error of an import, with its first cause."""
        error = first_of(error)
        name = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and name and "." not in name:
            what = f"the package {name} is not installed in this Python. Choose the kernel of this project (Kernel → "
            return cls(f"{what}Change Kernel…), or type `make setup` in its folder and restart the kernel", name=name)
        cause = in_words(error).strip().split("\n")[0]
        what = f"a package that is needed here can't be imported ({cause}). Restart the kernel; if that does not help, "
        return cls(f"{what}type `make setup` in this project's folder and restart it again", name=name)


def first_of(error: BaseException) -> BaseException:
    """The cause at the start of a chain of errors: packages that import on demand raise one of their own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def in_words(error: BaseException) -> str:
    """Its type and its message."""
    return f"{type(error).__name__}: {error}"
