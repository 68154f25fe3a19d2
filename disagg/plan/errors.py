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

    run: object = None  # what was recorded of the run that it broke


class FileError(DisaggError, ValueError):
    """A file can't be read as a recording, or can't be written: where it is wrong, and why."""


class TraceError(FileError):
    """A file can't be read as a trace of arrivals: file, line, and what is wrong there."""


class DifferenceError(DisaggError, ValueError):
    """Two runs can't be compared: they served other requests."""


class PackageError(DisaggError, ImportError):
    """A package that is needed here is not installed in this Python, or is there and can't be imported."""

    @classmethod
    def of(cls, error: BaseException) -> "PackageError":
        """What went wrong in an import, in the words of the error that began it."""
        error = first_of(error)
        name = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and name and "." not in name:
            what = f"the package {name} is not installed in this Python. Choose the kernel of this project (Kernel → "
            return cls(f"{what}Change Kernel…), or type `make setup` in its folder and restart the kernel", name=name)
        cause = in_words(error).strip().split("\n")[0]
        what = f"a package that is needed here can't be imported ({cause}). Restart the kernel; if that does not help, "
        return cls(f"{what}type `make setup` in this project's folder and restart it again", name=name)


def first_of(error: BaseException) -> BaseException:
    """The error that others were raised from; packages that import on demand put one of their own around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def in_words(error: BaseException) -> str:
    """Its type and its message."""
    return f"{type(error).__name__}: {error}"
