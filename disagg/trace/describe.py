"""The controller's events and commands in words, for stepping through its decisions."""

from disagg.plan import commands as cmd
from disagg.plan import events as ev


def event_in_words(event: ev.Event) -> str:
    """What happened, in one sentence without a stop."""
    match event:
        case ev.Submit(job):
            return f"request {job.id} arrived: {len(job.prompt)} prompt tokens, at most {job.max_new_tokens} new ones"
        case ev.Cancel(request):
            return f"request {request} was cancelled"
        case ev.RequestFailed(request, error):
            return f"request {request} failed: {error}"
        case ev.TimeLost(lost_ns):
            return f"nothing ran for {lost_ns / 1e9:.1f} s: deadlines move by as much"
        case ev.Retune():
            return "the settings changed"
        case ev.Tick():
            return "time passed: deadlines are checked"
        case ev.Prefilled(worker, number, tokens):
            given = f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}"
            return f"{worker} ended pass {number} after {_took(event)} with {given}"
        case ev.Stepped(worker, number, tokens):
            rows = f"{len(tokens)} rows, {event.padded_slots} slots read"
            return f"{worker} ended step {number} after {_took(event)}: {rows}"
        case ev.PassFailed() | ev.StepFailed():
            return f"{event.worker} failed: {event.error}"
        case ev.Landed():
            return f"{', '.join(map(_part, event.parts))} of transfer {event.transfer} landed ({event.nbytes} bytes)"
        case ev.SourceRead(transfer):
            return f"the source of transfer {transfer} has been read"
        case ev.TransferFailed():
            return f"transfer {event.transfer} failed: {event.error}"
        case ev.TransferClosed(transfer):
            return f"the last copy of transfer {transfer} has ended"
        case ev.Probed():
            passes = ", ".join(f"{tokens} tokens in {ns / 1e6:.1f} ms" for tokens, ns in event.passes)
            return f"measured before the first request: passes of {passes}"
        case ev.WorkerDied():
            return f"{event.worker} died: {event.error}"


def command_in_words(command: cmd.Command) -> str:
    """What the command asks or reports, in one sentence without a stop."""
    match command:
        case cmd.Prefill():
            chunks = ", ".join(f"request {c.request} tokens {c.start} to {c.stop}" for c in command.prompts)
            beside = f", with {len(command.rows)} rows of step {command.step.step}" if command.step else ""
            return f"{command.worker}: run pass {command.pass_id} ({chunks}){beside}"
        case cmd.Decode():
            joins = f", {len(command.joins)} join" if command.joins else ""
            left = f", {len(command.left)} left" if command.left else ""
            return f"{command.worker}: run step {command.step} with {sum(map(len, command.groups))} rows{joins}{left}"
        case cmd.Send():
            how = "at once" if command.layers_ready else "layer by layer"
            blocks = f"{len(command.blocks)} of {command.due_blocks} blocks"
            return f"{command.source}: {blocks} of request {command.request} may travel {how} ({command.route})"
        case cmd.Assign():
            return f"transfer {command.transfer} lands on {command.target} in {len(command.blocks)} blocks"
        case cmd.Abort(transfer):
            return f"start no more copies of transfer {transfer}"
        case cmd.Emit():
            return f"a token each for requests {', '.join(map(str, command.requests))}"
        case cmd.Ended():
            error = f" ({command.error})" if command.error else ""
            return f"request {command.request} has ended: {command.finish.value}{error}"
        case cmd.Preempted(choice):
            return f"request {choice.request} leaves its decode worker: {choice.arm.value}"
        case cmd.Placed():
            return f"request {command.request}: {command.way or 'rejected'}"
        case cmd.Retuned():
            return "new links and granularity are in force"
        case cmd.Broken(cause):
            return f"broken: {cause}"


def _took(event: ev.Prefilled | ev.Stepped) -> str:
    return f"{(event.ended_ns - event.started_ns) / 1e6:.1f} ms"


def _part(part: ev.Part) -> str:
    one = part.layer_end == part.layer + 1
    layers = f"layer {part.layer}" if one else f"layers {part.layer} to {part.layer_end - 1}"
    return f"{layers}, blocks {part.block} to {part.block_end - 1},"
