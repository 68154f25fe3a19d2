"""What `submit` gives back: the answer as it comes, and a way to stop it."""

import queue
from collections.abc import Callable, Iterator

from disagg.plan.commands import Command, Emit, Ended
from disagg.plan.request import Finish
from disagg.run.clock import now_ns
from disagg.run.model.model import Model
from disagg.run.threads import Latch
from disagg.trace.results import Result


class Handle:
    """`for piece in handle` streams text; `result()` waits for the end; `cancel()` stops it within a step."""

    def __init__(self, result: Result, model: Model, cancel: "Callable[[Handle], None]") -> None:
        self.so_far = result  # tokens and their times are appended as they come
        self._model = model
        self._cancel: Callable[[Handle], None] | None = cancel  # of its engine, which does not end before the request
        self._tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._ended = Latch()

    def __repr__(self) -> str:
        return repr(self.so_far)

    def __iter__(self) -> Iterator[str]:
        """Text as tokens come; it can be read once."""
        pieces = self._model.text.detokenizer()
        while (token := self._tokens.get()) is not None:
            if token not in self._model.eos_ids and (piece := pieces.push(token)):
                yield piece
        self._tokens.put(None)
        if rest := pieces.flush():
            yield rest

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ends the request as cancelled; tokens that came before are kept. Nothing happens to an ended one."""
        if (cancel := self._cancel) is not None:
            cancel(self)

    def result(self, timeout_s: float | None = None) -> Result:
        """The result, once the request has ended. TimeoutError where that takes longer than the limit."""
        if not self._ended.wait(timeout_s):
            raise TimeoutError(f"request {self.so_far.request} has not ended within {timeout_s:g} s")
        return self.so_far

    # ---- called by the engine ----------------------------------------------------------------------------------------

    def push(self, token: int, at_ns: int) -> None:
        self.so_far.token_ids.append(token)
        self.so_far.token_times_ns.append(at_ns)
        self._tokens.put(token)

    def end(self, ended: Ended) -> None:
        result = self.so_far
        result.finish_reason, result.error = ended.finish.value, ended.error
        result.stages, result.ended_ns, result.seat = ended.stages, ended.at_ns, ended.seat
        del result.logits[len(result.token_ids) :]  # a token that was dropped leaves no logits
        words = [token for token in result.token_ids if token not in self._model.eos_ids]
        result.text, undecodable = self._model.text.read(words)
        if undecodable and result.error is None and ended.finish is not Finish.CANCELLED:
            result.finish_reason, result.error = Finish.FAILED.value, f"{undecodable}; all ids are in token_ids"
        self._cancel = None
        self._tokens.put(None)
        self._ended.set()

    def orphan(self, ended: Ended) -> None:
        """In a forked process, where no thread is left to end it: what a caller waits with may be locked by threads
        that are gone."""
        self._tokens, self._ended = queue.SimpleQueue(), Latch()
        self.end(ended)


class OpenHandles(dict[int, Handle]):
    """Handles of the requests that have not ended, by number; only the engine's thread changes it."""

    def obey(self, command: Command) -> None:
        """A command's tokens, or its end, for the handles that it names."""
        match command:
            case Emit():
                for request, token in zip(command.requests, command.tokens, strict=True):
                    if handle := self.get(request):
                        handle.push(token, command.at_ns)
            case Ended():
                if handle := self.pop(command.request, None):
                    handle.end(command)

    def fail(self, cause: str, orphans: bool = False) -> None:
        """Every one ends as failed, so that no caller waits for ever. `orphans`: in a forked process."""
        for number, handle in list(self.items()):
            del self[number]
            ended = Ended(number, Finish.FAILED, cause, now_ns(), ())
            handle.orphan(ended) if orphans else handle.end(ended)
