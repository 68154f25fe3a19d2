"""Applies each event to the log's view, and names the detector that fails if the controller acts on a stray.

A stray changes nothing: it is a repeat, late, or of a request or transfer that is not open.
"""

from disagg.monitor.block_monitor import place
from disagg.monitor.log_view import LogView
from disagg.monitor.request_monitor import RequestView
from disagg.plan import events as ev
from disagg.plan.commands import Worker


def hear(log: LogView, event: ev.Event) -> str:
    """Applies an event before the controller handles it; returns a stray's detector, else ""."""
    match event:
        case ev.Stepped() | ev.StepFailed():
            return _step_ended(log, event)
        case ev.Landed():
            return _landed(log, event)
        case ev.Prefilled():
            return _pass_ended(log, event, event.tokens)
        case ev.PassFailed():
            return _pass_ended(log, event, None)
        case ev.Submit():
            log.requests.submit(event.job, log.now_ns)
        case ev.Cancel() | ev.RequestFailed() if event.request not in log.requests.open:
            return "OneEnd"
        case ev.Cancel():
            log.requests.open[event.request].cancelled = True
        case ev.RequestFailed():
            log.requests.fails(event.request, surely=True)
        case ev.SourceRead():
            return "" if log.transfers.source_read(event.transfer) else "Ledger"
        case ev.TransferFailed():
            return _transfer_failed(log, event)
        case ev.TransferClosed():
            return _transfer_closed(log, event)
        case ev.Retune():
            log.requests.may_fail = None
        case ev.TimeLost():
            log.waiting.postpone(event.lost_ns)
        case ev.WorkerDied():
            log.excused = True
    return ""


def _step_ended(log: LogView, event: ev.Stepped | ev.StepFailed) -> str:
    batch = log.blocks.batches.get(event.worker)
    if batch is None or not batch.steps or batch.steps[0] != event.step:
        return "Ledger"
    if isinstance(event, ev.StepFailed):
        for request in batch.running():
            log.requests.fails(request, surely=True)
    _end_step(log, event.worker, event.step)
    return ""


def _end_step(log: LogView, worker: Worker, step: int) -> None:
    log.blocks.batches[worker].end()
    del log.waiting.begun["step", worker, step]


def _landed(log: LogView, event: ev.Landed) -> str:
    if not log.transfers.landed(event):
        return "Ledger"
    carried = log.transfers.open[event.transfer]
    view = log.requests.open.get(carried.request)
    if carried.complete and not carried.aborted and view is not None and not view.prefilling:
        log.complete(carried, view)
    return ""


def _pass_ended(log: LogView, event: ev.Prefilled | ev.PassFailed, given: tuple[int, ...] | None) -> str:
    """`given`: tokens of the prompts that end in the pass; None if the pass failed."""
    command = log.waiting.passes.get(event.worker)
    if command is None or command.pass_id != event.pass_id:
        return "Ledger"
    del log.waiting.passes[event.worker], log.waiting.begun["pass", event.worker]
    tokens = iter(given or ())
    for chunk in command.chunks:
        log.blocks.leave(place(event.worker), chunk.blocks)
        if given is None:
            log.requests.fails(chunk.request, surely=True)
    if command.step is not None:
        _end_step(log, event.worker, command.step.step)
    for chunk in command.prompts:
        view, token = log.requests.open.get(chunk.request), next(tokens, None) if chunk.final else None
        if given is not None and chunk.final and view is not None:
            done = token in view.job.eos_ids or view.given + 1 == view.job.max_new_tokens
            _prefilled(log, view, done)
    return ""


def _prefilled(log: LogView, view: RequestView, done: bool) -> None:
    """The request has its first token; if that is also its last, the transfer will be aborted."""
    view.prefilling, view.prefilled, view.since_ns = False, True, log.now_ns
    if done:
        return
    log.finals.append(view)
    if view.stays:
        view.arrived = True
    elif (carried := log.carried_of(view)) is not None and not carried.aborted:
        if carried.complete:
            log.complete(carried, view)
        elif carried.target is not None:
            log.begin("transfer", carried.id)


def _transfer_failed(log: LogView, event: ev.TransferFailed) -> str:
    carried = log.transfers.open.get(event.transfer)
    if carried is None or carried.aborted:
        return "Ledger"
    log.requests.fails(carried.request)
    return ""


def _transfer_closed(log: LogView, event: ev.TransferClosed) -> str:
    carried = log.transfers.open.get(event.transfer)
    if carried is None or not carried.aborted:
        return "Ledger"
    log.close(carried)
    return ""
