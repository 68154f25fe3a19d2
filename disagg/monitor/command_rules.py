"""Applies each command to the log's view, and checks what must be true before the command runs."""

from disagg.monitor.block_monitor import place
from disagg.monitor.log_view import LogView
from disagg.monitor.request_monitor import RequestView
from disagg.plan import commands as cmd
from disagg.plan.blocks import blocks_for


def obey(log: LogView, command: cmd.Command) -> None:
    match command:
        case cmd.Emit():
            log.requests.emit(command)
        case cmd.Decode():
            _decode(log, command)
        case cmd.Prefill():
            _prefill(log, command)
        case cmd.Send():
            view = log.requests.get(command.request, "is sent")
            log.transfers.send(command)
            view.transfer = command.transfer
        case cmd.Assign():
            carried = log.transfers.assign(command)
            if not log.requests.get(carried.request, "gets a target").prefilling:
                log.begin("transfer", carried.id)
        case cmd.Abort():
            carried = log.transfers.abort(command)
            log.waiting.begun.pop(("transfer", carried.id), None)
            log.begin("transfer", carried.id)
        case cmd.Preempted():
            view = log.requests.get(command.choice.request, "leaves its worker")
            view.arrived = view.prefilled = view.running = False
            view.since_ns = log.now_ns
        case cmd.Placed() if command.way == "recompute":
            view = log.requests.get(command.request, "is computed again")
            view.paged = view.prefilled = False
            view.since_ns = log.now_ns
        case cmd.Ended():
            _ended(log, command)


def _prefill(log: LogView, command: cmd.Prefill) -> None:
    pool = place(command.worker)
    if command.worker in log.waiting.passes:
        log.report("OneEnd", f"{command.worker} gets a second pass while one runs")
    if command.step is not None:
        _decode(log, command.step)
    for chunk in command.chunks:
        log.blocks.own(f"pass {command.pass_id}", chunk.request, pool, chunk.blocks)
        log.blocks.touch(pool, chunk.blocks)
    for chunk in command.prompts:
        view = log.requests.get(chunk.request, "is prefilled")
        view.stays = command.worker.role == "decode" and chunk.transfer is None
        if chunk.start == 0:
            view.prefilling, view.prefilled, view.arrived, view.paged = True, False, False, False
            view.since_ns, view.due = log.now_ns, None
    log.waiting.passes[command.worker] = command
    log.begin("pass", command.worker)


def _decode(log: LogView, command: cmd.Decode) -> None:
    batch = log.blocks.batches[command.worker]
    for join in command.joins:
        view = log.requests.get(join.request, "joins a batch")
        _check_join(log, view, join, batch.pool)
        view.running, view.since_ns, view.due = True, log.now_ns, None
    for request in command.left:
        if (left := log.requests.open.get(request)) is not None:
            left.running, left.since_ns = False, log.now_ns
    for request, block in command.grown:
        log.blocks.own(f"step {command.step}", request, batch.pool, (block,))
    batch.take(command)
    for request in batch.gone:
        log.report("OneEnd", f"step {command.step} has a row of request {request}, which has ended", request)
    log.begin("step", command.worker, command.step)


def _check_join(log: LogView, view: RequestView, join: cmd.Join, pool: str) -> None:
    """Landing: all K/V that decode reads have landed."""
    request = join.request
    log.blocks.own(f"the row of request {request}", request, pool, join.blocks)
    if not view.arrived:
        log.check_landed(view, "decode starts", join.blocks)
    need = blocks_for(join.context, log.block_size)
    if view.due is not None and view.due != need:
        text = f"decode starts with {view.due} landed blocks; {join.context} tokens are in {need}"
        log.report("Landing", text, request, join.blocks)


def _ended(log: LogView, command: cmd.Ended) -> None:
    carried = log.carried_of(log.requests.end(command))
    if carried is not None and not carried.aborted:
        text = f"it ends, and its transfer {carried.id} goes on"
        log.report("OneEnd", text, command.request, carried.blocks)
    log.blocks.ended(command.request)


def check_sent(log: LogView, view: RequestView) -> None:
    """Landing: prefill has ended, so all its blocks are sent."""
    request = view.job.id
    if view.stays or request not in log.requests.open or view.arrived or view.paged or not view.prefilled:
        return
    carried = log.carried_of(view)
    if carried is None:
        log.report("Landing", "prefill is over, and nothing was sent", request)
    need = blocks_for(len(view.job.prompt) + view.given - 1, log.block_size)
    if carried.due != need:
        text = f"{carried.due} blocks are due, of {need} that hold its tokens"
        log.report("Landing", text, request, tuple(carried.blocks))
    log.transfers.check_sent(carried)
