"""The controller one event at a time: the event, the reasons, and the state before and after, side by side.

stepper(Config.preset("paged", decode_blocks=12), [Request([1] * 60, 8), Request([1] * 90, 8)])
"""

from collections.abc import Sequence

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.show.instruments import Instrument, instrument
from disagg.show.plots.summaries import plural, short_list
from disagg.show.scene import Notes, Numbers, Scene
from disagg.trace.results import Run
from disagg.twin.stepper import Moment, Stepper


def stepper(config: Config, requests: Sequence[Request]) -> Instrument:
    """Steps through a simulated run of these requests (prompts as token ids)."""
    steps = Stepper(config, requests)
    steps.at(0)  # a run without a moment is refused
    controls = {"event": Numbers("event", 1, range(1, len(steps) + 1))}
    whole = steps.run()

    def beside(run: Run, event: int) -> Notes:
        return notes(steps, event - 1, run.timeline.start_ns)

    return instrument(Scene("The controller, one event at a time", controls, lambda event: whole, notes=beside))


def notes(steps: Stepper, number: int, start_ns: int) -> Notes:
    """The event, why, and what followed; with a row for each queue, memory, link, batch and request."""
    moment, before = steps.at(number), steps.at(number - 1) if number else None
    words = [f"{number + 1} of {len(steps)}, at {moment.at_ns / 1e6:.1f} ms: {moment.event}"]
    words += [f"because {why}" for why in moment.why] or ["no rule fired"]
    words += [f"→ {command}" for command in moment.commands]
    return Notes(words, changes(before, moment), moment.at_ns - start_ns)


def changes(before: Moment | None, after: Moment) -> list[tuple[str, str, str]]:
    """(what, before, after); "–" where it was not there."""
    old, new = rows_of(before.state) if before else {}, rows_of(after.state)
    return [(name, old.get(name, "–"), new.get(name, "–")) for name in dict.fromkeys((*new, *old))]


def rows_of(state: dict) -> dict[str, str]:
    rows = {}
    for name, queue in state["queues"].items():
        gate = f", held by {queue['gate']}" if queue["gate"] else ""
        rows[_queue_name(name)] = f"requests {short_list(queue['requests'])}{gate}" if queue["requests"] else "empty"
    for worker, requests in state["passes"].items():
        rows[f"pass on {worker}"] = f"requests {short_list(requests)}" if requests else "idle"
    for name, link in state["links"].items():
        rows[f"link {name}"] = ("a copy under way" if link["busy"] else "idle") + f", {link['waiting']} waiting"
    if state["ring"]:
        rows["ring"] = f"{state['ring']['total'] - state['ring']['free']} of {state['ring']['total']} slots held"
    for worker, groups in state["batches"].items():
        rows[f"batch of {worker}"] = " | ".join(short_list(group) for group in groups) or "empty"
    for name, pool in state["pools"].items():
        rows[f"memory {name}"] = f"{pool['free']} of {pool['total']} blocks free"
    for number, request in state["requests"].items():
        tables = "; ".join(f"{memory} {short_list(blocks)}" for memory, blocks in request["tables"].items())
        held = f"; blocks: {tables}" if tables else ""
        rows[f"request {number}"] = f"{request['stage']}, {plural(request['tokens'], 'token')}{held}"
    return rows


def _queue_name(name: str) -> str:
    """The shown name of "prefill 0 queue", "decode 0 landed" and "wanting"."""
    *worker, role = name.split()
    if role == "wanting":
        return "waiting for blocks on a decode device"
    return f"{'queue for' if role == 'queue' else 'landed on'} {' '.join(worker)}"
