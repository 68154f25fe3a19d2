"""The controller one event at a time: the event, the reasons, and the state before and after, side by side.

stepper(Config.preset("paged", decode_blocks=12), [Request([1] * 60, 8), Request([1] * 90, 8)])
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets

from disagg.plan.config import Config
from disagg.plan.request import Request
from disagg.show.plots.summaries import plural, short_list
from disagg.show.widgets import InCell, row
from disagg.trace.results import Run
from disagg.twin.stepper import Moment, Stepper

STYLE = "text-align:left;padding:0 12px 0 0;vertical-align:top;line-height:1.35"


class StepperView(InCell):
    """A panel over a `Stepper` (twin/stepper). `step()` and `back()` do what the buttons do."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        wide, last = ipywidgets.Layout(width="520px"), max(1, len(stepper) - 1)
        self.back_button = ipywidgets.Button(description="Back", tooltip="To the event before")
        tip = "Give the controller its next event"
        self.step_button = ipywidgets.Button(description="Step", button_style="primary", tooltip=tip)
        self.slider = ipywidgets.IntSlider(description="event", min=0, max=last, continuous_update=False, layout=wide)
        self.words, self.table = ipywidgets.HTML(), ipywidgets.HTML()
        controls = row(self.back_button, self.step_button, self.slider)
        self.panel = ipywidgets.VBox([controls, self.words, self.table])
        self.step_button.on_click(lambda button: self.step())
        self.back_button.on_click(lambda button: self.back())
        self.slider.observe(lambda change: self._show(change["new"]), names="value")
        self._show(0)

    def step(self) -> None:
        self.slider.value = min(self.slider.value + 1, len(self.stepper) - 1)

    def back(self) -> None:
        self.slider.value = max(self.slider.value - 1, 0)

    def fork(self, **changes: Any) -> tuple[Run, Run]:
        """Both runs from this moment on: unchanged, and with other settings."""
        return self.stepper.fork(**changes)

    def __repr__(self) -> str:
        return f"The controller one event at a time: {plural(len(self.stepper), 'event')}, buttons Back and Step."

    def _show(self, number: int) -> None:
        moment = self.stepper.go(number)
        before = self.stepper.at(number - 1) if number else None
        self.words.value, self.table.value = _words(moment, len(self.stepper)), _table(before, moment)


def stepper(config: Config, requests: Sequence[Request]) -> StepperView:
    """Steps through a simulated run of these requests (prompts as token ids)."""
    return StepperView(Stepper(config, requests))


def _words(moment: Moment, length: int) -> str:
    head = f"<b>{moment.number + 1} of {length}, at {moment.at_ns / 1e6:.1f} ms: {escape(moment.event)}</b>"
    whys = "".join(f"<li>because {escape(why)}</li>" for why in moment.why)
    commands = "".join(f"<li>→ {escape(command)}</li>" for command in moment.commands)
    return f"{head}<ul style='margin:2px 0;line-height:1.4'>{whys or '<li>no rule fired</li>'}{commands}</ul>"


def _table(before: Moment | None, after: Moment) -> str:
    """A row for each queue, memory, link, batch and request; changes are bold and marked."""
    old, new = rows_of(before.state) if before else {}, rows_of(after.state)
    head = "".join(f"<th style='{STYLE}'>{title}</th>" for title in ("", "before", "after"))
    lines = []
    for name in dict.fromkeys((*new, *old)):
        was, now = old.get(name, "–"), new.get(name, "–")
        shown = escape(now) if was == now else f"<b>▸ {escape(now)}</b>"
        cells = (escape(name), escape(was), shown)
        lines.append("<tr>" + "".join(f"<td style='{STYLE}'>{cell}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


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
