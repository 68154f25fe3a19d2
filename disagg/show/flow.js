// The system at the playhead: queue, devices with their layers, blocks and rows, links, and host memory with its ring.
// What it shows is read off the run's columns (columns.py); trace/flow.py says the same in Python.

import { FONT, THEMES, duration, element, firstWhere, unpack } from "./canvas.js";

const QUEUE_W = 86, GAP = 10, LINE = 18, PAD = 8, CHIP = 9, CELLS = 96; // CSS pixels; more blocks than CELLS become a bar
const NARROW = 620; // below it the parts stand under each other
const GREY = "#9aa0a6";
const NAMES = { prefill: "prefill device", decode: "decode device", host: "host memory", queue: "queue" };

// ---- data -----------------------------------------------------------------------------------------------------------

// Who owns each block of each memory, replayed up to a time.
export class Blocks {
  constructor(pools, columns) {
    [this.at, this.pool, this.state, this.owner, this.runs, this.first, this.count] = columns;
    this.pools = pools.map(([name, total]) => ({ name, total, shown: 0 }));
    for (let m = 0, r = 0; m < this.at.length; m++)
      for (let left = this.runs[m]; left; left--, r++)
        this.pools[this.pool[m]].shown = Math.max(this.pools[this.pool[m]].shown, this.first[r] + this.count[r]);
    this.restart();
  }

  restart() {
    for (const pool of this.pools) (pool.states = new Uint8Array(pool.shown)), (pool.owners = new Int32Array(pool.shown).fill(-1));
    this.move = this.run = 0;
  }

  seek(ns) {
    if (this.move && this.at[this.move - 1] > ns) this.restart();
    for (; this.move < this.at.length && this.at[this.move] <= ns; this.move++) {
      const pool = this.pools[this.pool[this.move]];
      for (let left = this.runs[this.move]; left; left--, this.run++) {
        const from = this.first[this.run], to = from + this.count[this.run];
        pool.states.fill(this.state[this.move], from, to), pool.owners.fill(this.owner[this.move], from, to);
      }
    }
  }
}

// Each part's list out of one column: [2, 1], [a, b, c] as [[a, b], [c]].
function parted(sizes, ...columns) {
  let at = 0;
  return [...sizes].map((size) => {
    const from = at;
    at += size;
    return columns.map((column) => column.subarray(from, at));
  });
}

const before = (times, ns) => firstWhere(times.length, (i) => times[i] > ns); // how many are not after `ns`

export class Flow {
  constructor(header, packed, moves, spans) {
    Object.assign(this, header, { spans });
    const [visits, times, place, tokens, tokenTimes, ringAt, ringHeld] = unpack(packed);
    this.visits = parted(visits, times, place), this.tokens = parted(tokens, tokenTimes).map(([times]) => times);
    Object.assign(this, { ringAt, ringHeld, blocks: new Blocks(header.pools, unpack(moves)) });
    this.end = Math.max(0, ...times, this.blocks.at.at(-1) ?? 0);
    this.prefills = new Set(spans.rows.filter((row) => row.spans.some((i) => this.kind(i) === "prefill")).map((row) => row.place));
  }

  kind(i) { return this.spans.kinds[this.spans.kind[i]]; }

  at(ns) {
    const { spans } = this, now = { here: {}, passes: {}, steps: {}, flights: {}, ready: {} };
    this.visits.forEach(([times, place], request) => {
      const known = before(times, ns), name = known ? this.places[place[known - 1]] : "gone";
      if (name !== "gone") (now.here[name] ??= []).push(request);
    });
    for (const row of spans.rows) {
      for (const i of spans.within(row, ns, ns)) {
        if (spans.start[i] > ns || spans.stop[i] <= ns) continue;
        const requests = spans.groups[spans.group[i]];
        if (this.kind(i) === "prefill") now.passes[row.place] = { requests, done: before(spans.handOffs[i], ns) };
        else if (this.kind(i) === "decode") now.steps[row.place] = requests;
        else now.flights[row.place] = { request: requests[0], layer: spans.index[i], layers: spans.count[i], share: this.share(i, ns) };
      }
      const later = firstWhere(row.spans.length, (k) => spans.start[row.spans[k]] > ns);
      for (const i of row.spans.slice(later))
        if (spans.ready[i] < spans.start[i] && spans.ready[i] <= ns) now.ready[row.place] = (now.ready[row.place] ?? 0) + spans.count[i];
    }
    now.ring = this.ringHeld[before(this.ringAt, ns) - 1] ?? 0;
    now.tokens = this.tokens.map((times) => before(times, ns));
    return now;
  }

  stops() {
    const sorted = (times) => [...new Set(times)].sort((a, b) => a - b), gone = this.places.indexOf("gone");
    const starts = (...kinds) => sorted([...this.spans.start].filter((_, i) => kinds.includes(this.kind(i))));
    return {
      "every start and end": null,
      "a layer leaves": starts("copy"),
      "a token": sorted(this.tokens.flatMap((times) => [...times])),
      "a spill or fetch": starts("spill", "fetch"),
      "blocks change hands": sorted(this.blocks.at),
      "a request is done": sorted(this.visits.flatMap(([times, place]) => [...times].filter((_, k) => place[k] === gone))),
    };
  }

  share(i, ns) { return (ns - this.spans.start[i]) / (this.spans.stop[i] - this.spans.start[i]); }

  // Where each layer of a request's hand-off is: null (not copied), "waits", "moves" or "left".
  layersOf(request, worker, ns) {
    const found = Array(this.layers).fill(null), lane = this.spans.rows.find((row) => this.source(row.place) === worker && this.isFirstHop(row.place));
    for (const i of lane?.spans ?? []) {
      if (this.spans.groups[this.spans.group[i]][0] !== request || this.kind(i) !== "copy" || this.spans.ready[i] > ns) continue;
      const state = this.spans.stop[i] <= ns ? "left" : this.spans.start[i] <= ns ? "moves" : "waits";
      found.fill(state, this.spans.index[i], this.spans.index[i] + this.spans.count[i]);
    }
    return found;
  }

  isFirstHop(lane) { return lane.startsWith("direct") || lane.startsWith("down"); }

  source(lane) {
    const [role, number] = lane.split(" ");
    if (role === "up") return "host";
    return role === "spill" || !this.workers.includes(`prefill ${number}`) ? `decode ${number}` : `prefill ${number}`;
  }

  // Where a lane leads; a direct one to the worker that its request goes to next.
  target(lane, request, ns) {
    const [role, number] = lane.split(" "), from = this.source(lane);
    if (role === "up") return `decode ${number}`;
    if (role !== "direct") return "host";
    const [times, place] = this.visits[request] ?? [[], []];
    for (let k = Math.max(0, before(times, ns) - 1); k < times.length; k++)
      if (this.places[place[k]] !== from && this.workers.includes(this.places[place[k]])) return this.places[place[k]];
    return this.workers.find((worker) => worker.startsWith("decode") && worker !== from);
  }
}

// ---- words ----------------------------------------------------------------------------------------------------------

const list = (numbers) => (numbers.length > 6 ? `${numbers.slice(0, 6).join(", ")} … (${numbers.length})` : numbers.join(", "));
const who = (numbers) => `request${numbers.length > 1 ? "s" : ""} ${list(numbers)}`;

export function flowWords(flow, now, ns) {
  const parts = [];
  if (now.here.queue) parts.push(`${who(now.here.queue)} in the queue`);
  for (const worker of flow.workers) {
    const pass = now.passes[worker], step = now.steps[worker], name = flow.nameOf(worker);
    if (pass) parts.push(`${name} computes layer ${Math.min(pass.done + 1, flow.layers)} of ${flow.layers} of ${who(pass.requests)}`);
    if (step) parts.push(`${name} decodes ${who(step)}`);
  }
  for (const [lane, flight] of Object.entries(now.flights))
    parts.push(`layer ${flight.layer}${flight.layers > 1 ? `–${flight.layer + flight.layers - 1}` : ""} of request ${flight.request} on its way to ${flow.nameOf(flow.target(lane, flight.request, ns))}`);
  for (const [lane, count] of Object.entries(now.ready)) parts.push(`${count} layer${count > 1 ? "s" : ""} wait for a ${flow.isFirstHop(lane) && now.ring && now.ring === flow.ring ? "slot of the ring" : "link"}`);
  if (flow.ring) parts.push(`${now.ring} of ${flow.ring} ring slots held`);
  return `At ${duration(ns)}: ${parts.join("; ") || "nothing happens"}.`;
}

Flow.prototype.nameOf = function (place) {
  const [role, number] = place.split(" "), several = this.workers.filter((worker) => worker.startsWith(role)).length > 1;
  const name = role === "decode" && this.prefills.has(place) ? "device" : NAMES[role];
  return several ? `${name} ${number}` : name;
};

// ---- view -----------------------------------------------------------------------------------------------------------

export class FlowView {
  // Follows a TimelineView: its playhead, its request, its theme. `part` is the one to point at: queue, prefill, link, host, decode.
  constructor(parent, timeline, part = "") {
    Object.assign(this, { timeline, part, flow: null });
    this.root = element("div", parent, { className: "flow", view: this }, { font: FONT });
    this.canvas = element("canvas", this.root, {}, { display: "block", width: "100%" });
    this.canvas.setAttribute("role", "img");
    this.sizes = new ResizeObserver(() => this.redraw());
    this.sizes.observe(this.canvas);
    timeline.watch(() => this.flow && this.draw()); // in the timeline's own frame
  }

  show(header, packed, moves) {
    const { spans } = this.timeline;
    this.flow = new Flow(header, packed, moves, spans);
    spans.end = Math.max(spans.end, this.flow.end); // blocks become free after the last step
    this.timeline.offer(this.flow.stops());
    this.redraw();
  }

  close() {
    this.sizes.disconnect(), cancelAnimationFrame(this.frame);
    this.root.remove();
  }

  redraw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.flow && this.draw());
  }

  // Boxes of all parts by name, and the height of the whole.
  layout(wide) {
    const { flow } = this, boxes = {}, senders = flow.workers.filter((worker) => worker.startsWith("prefill"));
    const decodes = flow.workers.filter((worker) => worker.startsWith("decode"));
    const staged = flow.ring > 0 || flow.pools.some(([name]) => name === "host") || flow.lanes.some((lane) => lane.startsWith("down"));
    const stack = (names, x, width, top = 0) => names.reduce((y, name) => {
      const tall = this.tall(name, width);
      boxes[name] = { x, y, width, height: tall };
      return y + tall + GAP;
    }, top);
    if (wide < NARROW) {
      const full = wide - 2;
      boxes.queue = { x: 1, y: 1, width: full, height: 2 * LINE + 2 * PAD };
      let y = stack(senders, 1, full, 2 * LINE + 2 * PAD + GAP + 1);
      if (staged) y = stack(["host"], 1, full, y + 2 * GAP) + GAP;
      return { boxes, height: stack(decodes, 1, full, y + (staged ? 0 : 2 * GAP)) };
    }
    const room = wide - QUEUE_W - GAP - 2, x = QUEUE_W + GAP + 1;
    let height;
    if (!senders.length) height = stack(decodes, x, room, 1);
    else {
      const middle = staged ? 0.25 * room : 0.2 * room, link = staged ? 62 : 0, width = (room - middle - 2 * link) / 2;
      height = Math.max(stack(senders, x, width, 1), stack(decodes, x + width + middle + 2 * link, width, 1));
      if (staged) height = Math.max(height, stack(["host"], x + width + link, middle, 1));
      else boxes.link = { x: x + width, y: 1, width: middle, height: height - GAP };
    }
    boxes.queue = { x: 1, y: 1, width: QUEUE_W, height: height - GAP - 1 };
    return { boxes, height };
  }

  tall(name, width) {
    const pool = this.flow.blocks.pools.find((known) => known.name === name), blocks = pool?.shown ? LINE + this.deep(pool, width) : 0;
    if (name === "host") return PAD + LINE + (this.flow.ring ? 2 * LINE + 4 : 0) + blocks + 2 * LINE + PAD;
    return PAD + LINE + (this.flow.prefills.has(name) ? LINE + 6 : 0) + blocks + (name.startsWith("decode") ? 2 * LINE + 6 : 4) + PAD;
  }

  cell(width) { return Math.max(7, Math.min(14, Math.floor((width - 2 * PAD) / 24))); }

  deep(pool, width) {
    if (pool.shown > CELLS) return LINE;
    return Math.ceil(pool.shown / Math.floor((width - 2 * PAD) / this.cell(width))) * this.cell(width) + 4;
  }

  draw() {
    const { flow, timeline } = this, wide = this.canvas.clientWidth, ratio = devicePixelRatio || 1;
    if (!wide) return;
    const { boxes, height } = this.layout(wide), at = timeline.at, now = flow.at(at), pen = (this.pen = this.canvas.getContext("2d"));
    flow.blocks.seek(at);
    this.colours = timeline.colours ?? THEMES.light, this.boxes = boxes;
    this.canvas.style.height = `${height}px`;
    const size = [Math.round(wide * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== size[0]) this.canvas.width = size[0];
    if (this.canvas.height !== size[1]) this.canvas.height = size[1];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = this.colours.paper, pen.fillRect(0, 0, wide, height);
    pen.font = FONT, pen.textBaseline = "middle", pen.lineWidth = 1;
    for (const lane of flow.lanes) this.wire(lane, now, at);
    for (const [name, box] of Object.entries(boxes)) if (name !== "link") this.box(name, box, now, at);
    for (const [lane, flight] of Object.entries(now.flights)) this.flight(lane, flight, at);
    for (const [lane, count] of Object.entries(now.ready)) this.held(lane, count, now, at);
    this.canvas.ariaLabel = flowWords(flow, now, at);
    this.now = now;
  }

  colour(request) { return request < 0 ? GREY : this.flow.requests[request % this.flow.requests.length]; }
  faded(request) { return this.timeline.request !== null && this.timeline.request !== request; }

  text(words, x, y, most = 400, bold = false, align = "left") {
    const { pen } = this;
    pen.font = bold ? `bold ${FONT}` : FONT, pen.textAlign = align, pen.fillStyle = this.colours.ink;
    pen.fillText(words, x, y, most);
    pen.font = FONT, pen.textAlign = "left";
  }

  box(name, { x, y, width, height }, now, at) {
    const { pen, flow } = this, role = name.split(" ")[0], pointed = this.part === role || (this.part === "link" && role === "host");
    pen.fillStyle = this.colours.soft, pen.strokeStyle = pointed ? "#D55E00" : this.colours.frame, pen.lineWidth = pointed ? 2.5 : 1;
    pen.beginPath(), pen.roundRect(x + 0.5, y + 0.5, width - 1, height - 1, 6), pen.fill(), pen.stroke();
    pen.lineWidth = 1;
    const left = x + PAD, room = width - 2 * PAD;
    let line = y + PAD + LINE / 2 - 2;
    this.text(flow.nameOf(name), left, line, room, true);
    if (role === "queue") return this.waiting(now.here.queue ?? [], left, line + LINE + 2, room, y + height - PAD);
    if (role === "host") {
      line += LINE;
      if (flow.ring) line = this.slots(now.ring, left, line, room);
    } else {
      const title = pen.measureText(flow.nameOf(name)).width + 22;
      this.text(this.doing(name, now), x + width - PAD, line, room - title, false, "right");
      line += LINE;
      if (flow.prefills.has(name)) line = this.tiles(name, now, at, left, line - 6, room) + 8;
    }
    const pool = flow.blocks.pools.find((known) => known.name === name);
    if (pool?.shown) line = this.memory(pool, left, line, room);
    if (role !== "prefill") this.rows(name, now, at, left, line + CHIP - 4, room);
  }

  doing(name, now) {
    const pass = now.passes[name], step = now.steps[name];
    const layer = pass && `${who(pass.requests)}: layer ${Math.min(pass.done + 1, this.flow.layers)} of ${this.flow.layers}`;
    const rows = step && `a step of ${step.length} row${step.length > 1 ? "s" : ""}`;
    return [layer, rows].filter(Boolean).join(", with ") || "idle";
  }

  chip(request, x, y, inStep = true) {
    const { pen } = this;
    pen.globalAlpha = this.faded(request) ? 0.25 : 1;
    pen.fillStyle = this.colour(request), pen.strokeStyle = inStep ? "#009E73" : this.colours.frame, pen.lineWidth = inStep ? 2.5 : 1;
    pen.beginPath(), pen.arc(x, y, CHIP, 0, 7), pen.fill(), pen.stroke();
    pen.fillStyle = "#222222", pen.textAlign = "center", pen.fillText(request, x, y + 1, 2 * CHIP - 3);
    pen.textAlign = "left", pen.globalAlpha = 1, pen.lineWidth = 1;
  }

  waiting(requests, left, top, room, foot) {
    const across = Math.max(1, Math.floor(room / (2 * CHIP + 4))), most = across * Math.max(1, Math.floor((foot - top + 6) / (2 * CHIP + 4)));
    const shown = requests.length > most ? requests.slice(0, most - 1) : requests;
    const place = (k) => [left + CHIP + (k % across) * (2 * CHIP + 4), top + CHIP - 4 + Math.floor(k / across) * (2 * CHIP + 4)];
    shown.forEach((request, k) => this.chip(request, ...place(k), false));
    if (shown.length < requests.length) this.text(`+${requests.length - shown.length}`, place(shown.length)[0] - CHIP, place(shown.length)[1]);
    if (!requests.length) this.text("empty", left, top, room);
  }

  // A tile a layer of the pass under way, or of the hand-off that still goes on.
  tiles(name, now, at, left, top, room) {
    const { pen, flow } = this, pass = now.passes[name], wide = room / Math.max(1, flow.layers);
    const request = pass?.requests.at(-1) ?? (now.here[name] ?? []).find((one) => flow.layersOf(one, name, at).some((s) => s === "waits" || s === "moves"));
    const states = request === undefined ? [] : flow.layersOf(request, name, at), done = pass ? pass.done : request === undefined ? 0 : flow.layers;
    for (let k = 0; k < flow.layers; k++) {
      const x = left + k * wide, size = Math.max(2, wide - 2);
      pen.globalAlpha = states[k] === "left" || states[k] === "moves" ? 0.3 : 1;
      pen.fillStyle = k < done ? this.colour(request) : this.colours.paper;
      pen.fillRect(x, top, size, 14), (pen.globalAlpha = 1);
      pen.strokeStyle = this.colours.frame, pen.strokeRect(x + 0.5, top + 0.5, size - 1, 13);
      if (pass && k === done) pen.fillStyle = "#0072B2", pen.fillRect(x, top, size, 14);
      if (states[k] === "waits") pen.fillStyle = "#E69F00", pen.fillRect(x, top + 15, size, 3);
    }
    return top + LINE + 4;
  }

  slots(held, left, line, room) {
    const { pen, flow } = this, size = Math.min(16, room / flow.ring - 3), full = held === flow.ring;
    this.text(`ring: ${held} of ${flow.ring} slots${full ? ", full" : ""}`, left, line - 2, room);
    for (let k = 0; k < flow.ring && (k + 1) * (size + 3) <= room + 3; k++) {
      pen.strokeStyle = full ? "#D55E00" : this.colours.frame, pen.fillStyle = "#E69F00";
      if (k < held) pen.fillRect(left + k * (size + 3), line + 8, size, 16);
      pen.strokeRect(left + k * (size + 3) + 0.5, line + 8.5, size - 1, 15);
    }
    return line + 2 * LINE + 4;
  }

  memory(pool, left, line, room) {
    const { pen } = this, held = pool.owners.reduce((sum, owner) => sum + (owner !== -1), 0);
    this.text(`blocks: ${held} of ${pool.total} held`, left, line - 2, room);
    const top = line + 8;
    if (pool.shown > CELLS) {
      const counts = new Map();
      pool.owners.forEach((owner) => owner !== -1 && counts.set(owner, (counts.get(owner) ?? 0) + 1));
      let x = left;
      for (const [owner, count] of counts) {
        pen.globalAlpha = this.faded(owner) ? 0.25 : 1, pen.fillStyle = this.colour(owner);
        pen.fillRect(x, top, (count / pool.total) * room, 12), (x += (count / pool.total) * room);
      }
      pen.globalAlpha = 1, pen.strokeStyle = this.colours.frame, pen.strokeRect(left + 0.5, top + 0.5, room - 1, 11);
      return line + 2 * LINE;
    }
    const cell = this.cell(room + 2 * PAD), across = Math.floor(room / cell);
    for (let b = 0; b < pool.shown; b++) {
      const x = left + (b % across) * cell, y = top + Math.floor(b / across) * cell, owner = pool.owners[b], size = cell - 2;
      pen.globalAlpha = owner !== -1 && this.faded(owner) ? 0.25 : 1;
      if (owner !== -1) {
        pen.fillStyle = this.colour(owner);
        if (pool.states[b] === 1) pen.beginPath(), pen.moveTo(x, y + size), pen.lineTo(x + size, y + size), pen.lineTo(x + size, y), pen.fill();
        else pen.fillRect(x, y, size, size);
      }
      pen.strokeStyle = this.colours.frame, pen.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    }
    pen.globalAlpha = 1;
    return line + LINE + this.deep(pool, room + 2 * PAD);
  }

  // Requests on a decode device or in host memory, each over the number of its tokens; a token that has just come leaves.
  rows(name, now, at, left, y, room) {
    const { pen } = this, here = now.here[name] ?? [], step = now.steps[name] ?? [], each = 2 * CHIP + 8;
    const chips = name === "host" ? here : here.filter((request) => !now.passes[name]?.requests.includes(request) || step.includes(request));
    const most = Math.floor(room / each), shown = chips.length > most ? chips.slice(0, most - 1) : chips;
    if (!chips.length) return this.text(name === "host" ? "nobody waits here" : "no rows", left, y, room);
    const soon = 0.012 * (this.timeline.high - this.timeline.low);
    shown.forEach((request, k) => {
      const x = left + CHIP + k * each, tokens = now.tokens[request];
      this.chip(request, x, y, step.includes(request));
      this.text(String(tokens), x, y + LINE + 1, each, false, "center");
      const since = tokens ? at - this.flow.tokens[request][tokens - 1] : Infinity;
      if (since < soon) pen.fillStyle = this.colour(request), pen.beginPath(), pen.arc(x + CHIP, y - CHIP - (10 * since) / soon, 3.5, 0, 7), pen.fill();
    });
    if (shown.length < chips.length) this.text(`+${chips.length - shown.length}`, left + shown.length * each, y);
  }

  // -- links

  ends(lane, request, at) {
    const a = this.boxes[this.flow.source(lane)], b = this.boxes[this.flow.target(lane, request, at)];
    if (!a || !b) return null;
    const back = lane.startsWith("spill") ? 26 : lane.startsWith("park") ? -18 : 0; // its own height beside the others
    const level = (box) => box.y + Math.min(box.height - 10, 40) + back;
    if (a.x + a.width <= b.x) return [a.x + a.width, level(a), b.x, level(b)];
    if (b.x + b.width <= a.x) return [a.x, level(a), b.x + b.width, level(b)];
    const x = a.x + a.width * 0.5 + back * 2, down = a.y < b.y;
    return [x, down ? a.y + a.height : a.y, x, down ? b.y : b.y + b.height];
  }

  wire(lane, now, at) {
    const flight = now.flights[lane], line = this.ends(lane, flight?.request ?? 0, at), { pen } = this;
    if (!line) return;
    const [x0, y0, x1, y1] = line, angle = Math.atan2(y1 - y0, x1 - x0);
    pen.strokeStyle = pen.fillStyle = flight ? "#E69F00" : this.part === "link" ? "#D55E00" : this.colours.frame;
    pen.lineWidth = flight || this.part === "link" ? 3 : 1.5;
    pen.beginPath(), pen.moveTo(x0, y0), pen.lineTo(x1, y1), pen.stroke();
    pen.beginPath(), pen.moveTo(x1, y1);
    for (const turn of [2.7, -2.7]) pen.lineTo(x1 + 9 * Math.cos(angle + turn), y1 + 9 * Math.sin(angle + turn));
    pen.fill(), (pen.lineWidth = 1);
    const upright = Math.abs(x1 - x0) < 40;
    if (!lane.startsWith("direct")) return;
    if (upright) this.text("link", x0 - 18, (y0 + y1) / 2, 60, true, "right");
    else if (this.boxes.link) this.text("link", (x0 + x1) / 2, y0 - 16, 60, true, "center");
  }

  // How many layers wait for a link, beside its arrow.
  held(lane, count, now, at) {
    const line = this.ends(lane, now.flights[lane]?.request ?? 0, at);
    if (!line) return;
    const [x0, y0, x1, y1] = line, across = Math.abs(x1 - x0) > 40;
    this.text(`${count} wait`, across ? (x0 + x1) / 2 : x0 + 18, across ? y0 + 20 : (y0 + y1) / 2, across ? Math.abs(x1 - x0) - 4 : 80, false, across ? "center" : "left");
  }

  flight(lane, { request, layer, layers, share }, at) {
    const line = this.ends(lane, request, at), { pen } = this;
    if (!line) return;
    const [x0, y0, x1, y1] = line, x = x0 + share * (x1 - x0), y = y0 + share * (y1 - y0), words = layers > 1 ? `${layers} ×` : String(layer);
    pen.globalAlpha = this.faded(request) ? 0.25 : 1;
    pen.fillStyle = this.colour(request), pen.strokeStyle = "#E69F00", pen.lineWidth = 2;
    pen.beginPath(), pen.roundRect(x - 11, y - 9, 22, 18, 3), pen.fill(), pen.stroke();
    pen.lineWidth = 1, pen.fillStyle = "#222222", pen.textAlign = "center", pen.fillText(words, x, y + 1, 20);
    pen.textAlign = "left", pen.globalAlpha = 1;
  }
}
