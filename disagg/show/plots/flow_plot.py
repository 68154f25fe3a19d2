"""The system at an instant as a labelled diagram: flow.js for print, and for front ends without widgets."""

from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from disagg.show.plots import draw
from disagg.show.plots.block_words import memory_name
from disagg.show.plots.palette import COLOURS, INK, REQUESTS
from disagg.show.plots.picture import Picture
from disagg.show.plots.summaries import milliseconds, plural, short_list
from disagg.trace.block_map import PageMap
from disagg.trace.flow import HOST, QUEUE, Flow, Instant
from disagg.trace.results import Run

TALL, GAP = 1.62, 0.1  # of a device's box, and between boxes; inches at 12 points
SOFT, FRAME, POINTED = "#F5F6F8", "#8A9099", "#D55E00"
MOST_CELLS = 48  # more blocks are drawn as a bar


class Box(NamedTuple):
    """A part of the diagram; inches from the left and from the top."""

    x: float
    y: float
    width: float
    height: float


def flow_picture(run: Run, at_ms: float | None = None, *, part: str = "") -> Picture:
    """The system `at_ms` after the run began; without a time, where most happens at once. `part` is pointed at: queue,
    prefill, link, host, decode."""
    flow = Flow(run)
    at_ns = busiest(flow) if at_ms is None else run.timeline.start_ns + round(1e6 * at_ms)
    now, size = flow.at(at_ns), draw.FONT_PT
    scale = size / 12
    columns = _columns(flow)
    height = scale * (max(len(names) for names in columns.values()) * (TALL + GAP) + 0.1)
    figure = draw.blank(height)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, figure.get_figwidth()), ylim=(height, 0))
    axes.set_axis_off()
    boxes = _boxes(columns, figure.get_figwidth(), height, scale)
    painter = Painter(axes, flow, now, boxes, PageMap(run.timeline), part, size)
    for lane in flow.lanes:
        painter.wire(lane)
    for name, box in boxes.items():
        painter.box(name, box)
    for lane in now.flights:
        painter.flight(lane)
    words = flow_words(flow, now)
    return Picture(figure, f"The system at an instant. {words}", words)


def busiest(flow: Flow) -> int:
    """An instant in the middle of the copy, or else pass or step, beside which most is under way."""
    spans = [span for span in flow.timeline.spans if span.kind == "copy"] or list(flow.timeline.spans)
    middles = [(span.start_ns + span.end_ns) // 2 for span in spans[:: max(1, len(spans) // 64)]]

    def under_way(at_ns: int) -> int:
        now = flow.at(at_ns)
        return len(now.passes) + 2 * len(now.steps) + len(now.flights) + bool(now.ready) + bool(now.here.get(QUEUE))

    return max(middles, key=under_way, default=flow.timeline.start_ns)


def flow_words(flow: Flow, now: Instant) -> str:
    """What happens at that instant, in a sentence."""
    parts = [f"{_who(waiting)} in the queue"] if (waiting := now.here.get(QUEUE)) else []
    for worker in flow.workers:
        if found := now.passes.get(worker):
            layer = f"layer {min(found.done + 1, flow.layers)} of {flow.layers}"
            parts.append(f"{_name(flow, worker)} computes {layer} of {_who(found.requests)}")
        if worker in now.steps:
            parts.append(f"{_name(flow, worker)} decodes {_who(now.steps[worker])}")
    for lane, flight in now.flights.items():
        layers = f"layer {flight.layer}" if flight.layers == 1 else plural(flight.layers, "layer")
        parts.append(f"{layers} of request {flight.request} on the way to {_name(flow, _target(flow, lane, now))}")
    parts += [f"{plural(count, 'layer')} wait{'s' * (count == 1)} for a link" for count in now.ready.values()]
    if slots := flow.timeline.sizes.get("ring"):
        parts.append(f"{now.ring} of {slots} ring slots held")
    at = milliseconds((now.at_ns - flow.timeline.start_ns) / 1e9)
    return f"At {at}: {'; '.join(parts) or 'nothing happens'}."


def _who(requests: tuple[int, ...] | list[int]) -> str:
    return f"request{'s' * (len(requests) > 1)} {short_list(list(requests))}"


def _name(flow: Flow, place: str) -> str:
    if place.startswith("decode") and flow.prefills(place):
        several = len(flow.workers) > 1
        return f"device {place.split()[1]}" if several else "device"
    return memory_name(place, sum(worker.split()[0] == place.split()[0] for worker in flow.workers) > 1)


def _source(flow: Flow, lane: str) -> str:
    role, number = lane.split()
    if role == "up":
        return HOST
    sender = f"prefill {number}"
    return sender if role != "spill" and sender in flow.workers else f"decode {number}"


def _target(flow: Flow, lane: str, now: Instant) -> str:
    """A direct lane leads to the worker that its request goes to next."""
    role, number = lane.split()
    if role == "up":
        return f"decode {number}"
    if role != "direct":
        return HOST
    source, flight = _source(flow, lane), now.flights.get(lane)
    later = flow.visits[flight.request] if flight else []
    others = [worker for worker in flow.workers if worker.startswith("decode") and worker != source]
    return next((visit.place for visit in later if visit.place in others), others[0])


def _columns(flow: Flow) -> dict[str, list[str]]:
    prefills = [worker for worker in flow.workers if worker.startswith("prefill")]
    staged = "ring" in flow.timeline.sizes or "host" in flow.timeline.sizes
    columns = {QUEUE: [QUEUE], "prefill": prefills, HOST: [HOST] if staged else []}
    columns["decode"] = [worker for worker in flow.workers if worker not in prefills]
    return {name: found for name, found in columns.items() if found}


def _boxes(columns: dict[str, list[str]], width: float, height: float, scale: float) -> dict[str, Box]:
    gap = 0.42 * scale
    queue = 0.85 * scale
    wide = {QUEUE: queue, HOST: 1.85 * scale}
    between = [
        1.3 * scale if pair == ("prefill", "decode") else gap for pair in zip(columns, [*columns][1:], strict=False)
    ]
    between[:1] = [0.12 * scale]
    devices = [name for name in columns if name not in wide]
    room = width - 0.1 - sum(between) - sum(wide[name] for name in columns if name in wide)
    boxes, x = {}, 0.05
    for name, space in zip(columns, [*between, 0], strict=True):
        here = wide.get(name, room / len(devices))
        tall = (height - 0.1) / len(columns[name]) - GAP * scale
        for row, member in enumerate(columns[name]):
            boxes[member] = Box(x, 0.05 + row * (tall + GAP * scale), here, tall)
        x += here + space
    return boxes


class Painter:
    def __init__(
        self, axes: Axes, flow: Flow, now: Instant, boxes: dict[str, Box], blocks: PageMap, part: str, size: float
    ) -> None:
        self.axes, self.flow, self.now, self.boxes, self.part, self.size = axes, flow, now, boxes, part, size
        self.blocks, self.held = blocks, blocks.at(now.at_ns)
        self.line = 0.02 * size  # height of a line of text, in inches

    def text(self, x: float, y: float, words: str, **how: Any) -> None:
        how = {"fontsize": self.size - 2, "color": INK, "va": "center", "parse_math": False, **how}
        self.axes.text(x, y, words, **how)

    def rectangle(self, x: float, y: float, width: float, lines: float, face: str, **how: Any) -> None:
        how = {"edgecolor": FRAME, "linewidth": 0.8, **how}
        self.axes.add_artist(Rectangle((x, y), width, lines * self.line, facecolor=face, **how))

    def box(self, name: str, box: Box) -> None:
        role = name.split()[0]
        pointed = self.part == role or (self.part, role) == ("link", HOST)
        frame = draw.look(edgecolor=POINTED if pointed else FRAME, linewidth=2.5 if pointed else 1.0, facecolor=SOFT)
        style = "round,pad=0,rounding_size=0.06"
        self.axes.add_artist(FancyBboxPatch((box.x, box.y), box.width, box.height, boxstyle=style, **frame))
        x, y, room = box.x + 0.1, box.y + 0.75 * self.line, box.width - 0.2
        self.text(x, y, QUEUE if role == QUEUE else _name(self.flow, name), weight="bold")
        y += self.line
        if role == QUEUE:
            return self.chips(self.now.here.get(QUEUE, []), x, y, room, box.y + box.height, "empty")
        if role == HOST:
            y = self.slots(x, y, room) if "ring" in self.flow.timeline.sizes else y
        else:
            self.text(x, y, self._doing(name))
            y = self.tiles(name, x, y + 0.5 * self.line, room) if self.flow.prefills(name) else y + 0.9 * self.line
        y = self.memory(name, x, y, room)
        if role != "prefill":
            rows = [one for one in self.now.here.get(name, []) if one not in self._in_pass(name)]
            self.chips(rows, x, y, room, box.y + box.height, "no rows" if role == "decode" else "", name=name)

    def _in_pass(self, name: str) -> tuple[int, ...]:
        found = self.now.passes.get(name)
        return tuple(one for one in found.requests if one not in self.now.steps.get(name, ())) if found else ()

    def _doing(self, name: str) -> str:
        found, step = self.now.passes.get(name), self.now.steps.get(name)
        layers = self.flow.layers
        work = [f"{_who(found.requests)}: layer {min(found.done + 1, layers)} of {layers}"] if found else []
        work += [f"a step of {plural(len(step), 'row')}"] if step else []
        return ", with ".join(work) or "idle"

    def tiles(self, name: str, x: float, y: float, room: float) -> float:
        """A tile a layer: full when it is computed."""
        found, layers = self.now.passes.get(name), max(1, self.flow.layers)
        wide, done = room / layers, found.done if found else 0
        colour = REQUESTS[found.requests[-1] % len(REQUESTS)] if found else "white"
        for layer in range(layers):
            face = colour if layer < done else COLOURS["prefill"] if found and layer == done else "white"
            self.rectangle(x + layer * wide, y, 0.8 * wide, 0.6, face, linewidth=0.5)
        return y + 1.3 * self.line

    def slots(self, x: float, y: float, room: float) -> float:
        total, held = self.flow.timeline.sizes["ring"], self.now.ring
        self.text(x, y, f"ring: {held} of {total} slots{', full' * (held == total)}")
        wide = min(0.17, room / total)
        for slot in range(total):
            face = COLOURS["link"] if slot < held else "white"
            self.rectangle(x + slot * wide, y + 0.5 * self.line, 0.8 * wide, 0.65, face)
        return y + 2.1 * self.line

    def memory(self, pool: str, x: float, y: float, room: float) -> float:
        touched = self.blocks.touched(pool) if pool in self.held else []
        if not (shown := len(touched)):
            return y
        owners = [held.owner for held in self.held[pool]]
        used = sum(owner is not None for owner in owners)
        self.text(x, y, f"blocks: {used} of {len(owners)} held")
        y += 0.5 * self.line
        cells = (
            [owners[block] for block in touched]
            if shown <= MOST_CELLS
            else sorted((o for o in owners if o is not None), key=self._number)
        )
        wide = room / (max(24, shown) if shown <= MOST_CELLS else len(owners))
        for index, owner in enumerate(cells):
            face = "white" if owner is None else REQUESTS[self._number(owner) % len(REQUESTS)]
            edge = FRAME if shown <= MOST_CELLS else "none"
            self.rectangle(x + index * wide, y, wide, 0.6, face, edgecolor=edge, linewidth=0.5)
        if shown > MOST_CELLS:
            self.rectangle(x, y, room, 0.6, "none")
        return y + 1.2 * self.line

    def _number(self, owner: int) -> int:
        return self.flow.numbers.get(owner, owner)

    def chips(
        self, requests: list[int], x: float, y: float, room: float, foot: float, none: str, name: str = ""
    ) -> None:
        """Requests as discs with their numbers, over the count of their tokens; those in the step have a frame."""
        tokens = bool(name)
        across, each, down = 0.34 * self.size / 12, 0.45 * self.line, (2.0 if tokens else 1.2) * self.line
        columns = max(1, int(room // across))
        most = columns * (1 if tokens else max(1, int((foot - y) / down)))
        if not requests:
            return self.text(x, y, none)
        shown = requests if len(requests) <= most else requests[: most - 1]
        step = self.now.steps.get(name, ())
        for index, request in enumerate(shown):
            at = (x + each + index % columns * across, y + 0.2 * self.line + index // columns * down)
            edge = {"edgecolor": COLOURS["decode"], "linewidth": 2.5} if request in step else {"edgecolor": FRAME}
            self.axes.add_artist(Circle(at, each, facecolor=REQUESTS[request % len(REQUESTS)], **edge))
            self.text(*at, str(request), ha="center")
            if tokens:
                self.text(at[0], at[1] + 0.95 * self.line, str(self.now.tokens[request]), ha="center")
        if len(shown) < len(requests):
            self.text(
                x + len(shown) % columns * across, y + len(shown) // columns * down, f"+{len(requests) - len(shown)}"
            )

    def _ends(self, lane: str) -> tuple[tuple[float, float], tuple[float, float]]:
        first, last = self.boxes[_source(self.flow, lane)], self.boxes[_target(self.flow, lane, self.now)]
        level = {"spill": 0.75, "park": 0.15}.get(lane.split()[0], 0.45)
        start, end = first.y + level * first.height, last.y + level * last.height
        if first.x + first.width <= last.x:
            return (first.x + first.width, start), (last.x, end)
        if last.x + last.width <= first.x:
            return (first.x, start), (last.x + last.width, end)
        x = first.x + first.width / 2
        return (
            ((x, first.y + first.height), (x, last.y))
            if first.y < last.y
            else ((x, first.y), (x, last.y + last.height))
        )

    def wire(self, lane: str) -> None:
        start, end = self._ends(lane)
        busy, waiting = lane in self.now.flights, self.now.ready.get(lane, 0)
        colour = COLOURS["link"] if busy else POINTED if self.part == "link" else FRAME
        style = draw.look(arrowstyle="-|>", mutation_scale=self.size, linewidth=2.5 if busy else 1.2, color=colour)
        self.axes.add_artist(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
        middle = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        if lane.startswith("direct") and end[0] - start[0] > 0.6:
            self.text(middle[0], middle[1] - self.line, "link", ha="center", weight="bold")
        if waiting:
            self.text(middle[0], middle[1] + self.line, f"{waiting} wait", ha="center")

    def flight(self, lane: str) -> None:
        (x0, y0), (x1, y1) = self._ends(lane)
        flight = self.now.flights[lane]
        x, y = x0 + flight.share * (x1 - x0), y0 + flight.share * (y1 - y0)
        words = str(flight.layer) if flight.layers == 1 else f"{flight.layers} ×"
        face = dict(
            boxstyle="round,pad=0.25", facecolor=REQUESTS[flight.request % len(REQUESTS)], edgecolor=COLOURS["link"]
        )
        self.text(x, y, words, ha="center", bbox={**face, "linewidth": 1.5})
