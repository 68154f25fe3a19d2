"""The controller's events, reasons and commands in words, for stepping through its decisions."""

from collections.abc import Mapping

from disagg.plan import commands as cmd
from disagg.plan import events as ev
from disagg.plan.blocks import Part
from disagg.plan.policy import Option


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


def _part(part: Part) -> str:
    one = part.layer_end == part.layer + 1
    layers = f"layer {part.layer}" if one else f"layers {part.layer} to {part.layer_end - 1}"
    return f"{layers}, blocks {part.block} to {part.block_end - 1},"


def reason_in_words(rule: str, numbers: Mapping[str, object]) -> str:
    """Why the controller decided as it did: a rule that fired, and the numbers that it compared."""
    options = numbers.get("options")
    costs = ", ".join(map(_option_in_words, options)) if isinstance(options, tuple) else ""
    policy = POLICY_WORDS.get(str(numbers.get("policy")), numbers.get("policy"))
    return RULES[rule].format(**{**numbers, "policy": policy}, costs=costs)


def _option_in_words(option: Option) -> str:
    """The way with its time; where several workers can take it, with theirs."""
    workers = "" if option.onto is None else f" on {option.worker}"
    if option.way == "split" and option.onto is not None:
        workers = f" from {option.worker} to {option.onto}"
    return f"{option.way}{workers} {'unknown' if option.ns is None else f'{option.ns / 1e6:.1f} ms'}"


#: The policies that a Config can name.
POLICY_WORDS = {
    "fcfs": "first come, first served",
    "shortest": "shortest first",
    "deadline": "earliest deadline first",
}
RULES = {
    "admit": "request {request} starts prefill: it takes {need} of the {available} free blocks of {pool}",
    "admit: no slot": "request {request} stays in its queue: {ahead} requests are on their way to {limit} places "
    "in the batch",
    "admit: no block": "request {request} stays in its queue: it needs {need} blocks of {pool}, {available} are free",
    "place": "request {request} goes the way {way}: {costs}",
    "chunk": "the pass takes tokens {start} to {stop} of request {request}'s {target}; its budget was {budget}",
    "target": "request {request} gets {need} of the {available} free blocks of {pool} ({growth} stay for rows to grow)",
    "target: no block": "request {request} waits for {pool}: {need} blocks and {growth} for rows to grow are more than "
    "the {available} free",
    "park": "the K/V of request {request} go to host memory in {blocks} blocks: decode is full, and waiting hand-offs "
    "hold more than a quarter of prefill's blocks",
    "join": "request {request} joins the batch as row {rows} of at most {limit}",
    "join: no slot": "request {request} has landed and waits: the batch has {rows} of at most {limit} rows",
    "grow": "request {request} takes one more block of {pool} for its token {context}; {available} were free",
    "grow: no block": "request {request} needs a block of {pool} for its token {context}, and none is free",
    "preempt": "request {victim} makes room for request {request}: by policy ({policy}) it is the last",
    "spill": "request {request} is spilled: {spill_ms} ms there and back, against {recompute_ms} ms to recompute",
    "recompute": "request {request} is computed again: {recompute_ms} ms, against {spill_ms} ms to spill and fetch",
    "end": "request {request} ends ({finish}); its blocks {blocks}",
}
