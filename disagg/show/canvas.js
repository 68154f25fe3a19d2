// A timeline on a <canvas>: rows are workers and lanes, time runs right. The live widget and the exported page both use it.
// It reads columns (columns.py) and computes no metric. All text goes through textContent and fillText.

const LABELS = 112, AXIS = 26, ROW = 34, BOX = 24, LEGEND = 28; // CSS pixels: labels on the left, axis, rows, legend
const WIDE = 2, HATCHED = 6; // narrower spans share pixels; a hatch on narrower boxes would only make them pale
const PLAY_S = 10; // play crosses the visible stretch in this time, or slower
const SLOWER = { "speed 1": 1, "speed 1/4": 4, "speed 1/20": 20 };
export const FONT = "12px system-ui, sans-serif";
export const THEMES = {
  light: { paper: "#ffffff", ink: "#222222", line: "#dddddd", edge: "#ffffff", hatch: "rgba(255,255,255,0.65)", soft: "#f5f6f8", frame: "#b0b4ba" },
  dark: { paper: "#161616", ink: "#eeeeee", line: "#3c3c3c", edge: "#161616", hatch: "rgba(0,0,0,0.5)", soft: "#242629", frame: "#6a6f76" },
};
const KEYS = "Keys: , and . step to the last and next start or end of a span, Home and End; arrows pan, + and - zoom, " +
  "0 shows all; space plays; [ and ] choose a request, Escape shows all requests. Drag pans, a click sets the " +
  "playhead, the wheel zooms once the timeline has the focus (click it).";

// ---- data -----------------------------------------------------------------------------------------------------------

export function unpack(bytes) {
  let at = 0;
  const next = () => {
    let value = 0, scale = 1, byte;
    do {
      byte = bytes[at++];
      value += (byte & 127) * scale;
      scale *= 128;
    } while (byte > 127);
    return value;
  };
  const columns = [];
  while (at < bytes.length) {
    const column = new Float64Array(next());
    for (let i = 0, last = 0; i < column.length; i++) {
      const step = next();
      column[i] = last += step % 2 ? -(step + 1) / 2 : step / 2;
    }
    columns.push(column);
  }
  return columns;
}

// The first position in [0, length) at which `test` holds; it holds for all positions after it.
export function firstWhere(length, test) {
  let low = 0, high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (test(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

export class Spans {
  constructor(kinds = []) {
    Object.assign(this, { kinds, length: 0, end: 0, groups: [], rows: [], requests: [] });
    this.group = [], this.kind = [], this.start = [], this.stop = [], this.index = [], this.count = [], this.nbytes = [];
    this.ready = [], this.handOffs = []; // when a copy could begin; when a pass handed off each layer
  }

  // Takes a chunk; false where chunks before it are missing. Spans that are already here are passed over.
  take(header, bytes) {
    if (header.first > this.length) return false;
    const [sizes, members, group, kind, row, start, duration, index, count, nbytes, waited, handed, handOffs] = unpack(bytes);
    const base = this.groups.length, old = this.rows;
    let at = 0, mark = 0;
    for (const size of sizes) this.groups.push([...members.slice(at, (at += size))]);
    this.rows = header.rows.map(([place, name]) => ({ spans: [], reach: [], ...old.find((r) => r.place === place), place, name }));
    const marks = Array.from(handed, (size) => handOffs.subarray(mark, (mark += size)));
    for (let i = this.length - header.first; i < start.length; i++) {
      this.group.push(base + group[i]), this.kind.push(kind[i]), this.start.push(start[i]);
      this.stop.push(start[i] + duration[i]), this.index.push(index[i]), this.count.push(count[i]);
      this.ready.push(start[i] - waited[i]), this.handOffs.push(marks[i]);
      this.nbytes.push(nbytes[i]), this.rows[row[i]].spans.push(this.length++);
      this.end = Math.max(this.end, start[i] + duration[i]);
    }
    this.rows.forEach((r) => this.order(r));
    this.requests = [...new Set([...this.requests, ...members])].sort((a, b) => a - b);
    this.times = null;
    return true;
  }

  // By start; `reach` is the latest end so far, by which the first visible span is found.
  order(row) {
    let from = row.reach.length;
    if (from === row.spans.length) return;
    while (from && this.start[row.spans[from - 1]] > this.start[row.spans[from]]) from = 0;
    row.spans.sort((a, b) => this.start[a] - this.start[b] || this.kind[a] - this.kind[b]); // a pass, then its rows' step
    row.reach.length = 0;
    for (let i = 0, latest = 0; i < row.spans.length; i++) row.reach.push((latest = Math.max(latest, this.stop[row.spans[i]])));
  }

  // Spans of a row that share time with [low, high], by start.
  *within(row, low, high) {
    for (let i = firstWhere(row.spans.length, (k) => row.reach[k] > low); i < row.spans.length; i++) {
      const span = row.spans[i];
      if (this.start[span] > high) return;
      if (this.stop[span] > low || this.start[span] === low) yield span;
    }
  }

  has(span, request) {
    return request === null || this.groups[this.group[span]].includes(request);
  }

  // Does step `i` decode its rows in a prefill pass, the span before it on its row?
  rides(i, before, look) {
    const kinds = before === undefined ? "" : `${look[this.kind[before]].kind} ${look[this.kind[i]].kind}`;
    return kinds === "prefill decode" && this.start[i] === this.start[before];
  }

  // Starts and ends in order, of one request or of all.
  boundaries(request) {
    if (this.times?.request !== request) {
      const times = new Set();
      for (let i = 0; i < this.length; i++) if (this.has(i, request)) times.add(this.start[i]).add(this.stop[i]);
      this.times = { request, all: Float64Array.from(times).sort() };
    }
    return this.times.all;
  }

  step(at, direction, request) {
    const all = this.boundaries(request);
    const next = direction > 0 ? firstWhere(all.length, (i) => all[i] > at) : firstWhere(all.length, (i) => all[i] >= at) - 1;
    return all[Math.max(0, Math.min(all.length - 1, next))] ?? 0;
  }

  words(i, look) {
    const kind = look[this.kind[i]].kind, many = this.count[i] === 1 ? "" : "s";
    const layers = this.count[i] === 1 ? `layer ${this.index[i]}` : `layers ${this.index[i]}–${this.index[i] + this.count[i] - 1}`;
    const what = {
      prefill: `prefill pass ${this.index[i]}, ${this.count[i]} token${many}`,
      decode: `decode step ${this.index[i]}, ${this.count[i]} row${many}`,
    }[kind] ?? `${kind} of ${layers}, ${(this.nbytes[i] / 1e6).toPrecision(3)} MB`;
    return `${what}, ${requestWords(this.groups[this.group[i]])}`;
  }

  // What the playhead stands on, in a sentence.
  sentence(at, request, look) {
    const parts = [];
    for (const row of this.rows)
      for (const i of this.within(row, at, at))
        if (this.has(i, request) && this.stop[i] > at) parts.push(`${row.name}: ${this.words(i, look)}`);
    const who = request === null ? "" : `, request ${request}`;
    return `At ${duration(at)}${who}: ${parts.join("; ") || "nothing runs"}.`;
  }
}

function requestWords(requests) {
  const shown = requests.slice(0, 8).join(", ");
  return `request${requests.length > 1 ? "s" : ""} ${shown}${requests.length > 8 ? ` … (${requests.length})` : ""}`;
}

export function duration(ns) {
  if (ns >= 1e10) return `${(ns / 1e9).toFixed(2)} s`;
  return `${(ns / 1e6).toFixed(ns < 1e8 ? 2 : 1)} ms`;
}

export function ticks(low, high, about) {
  const rough = (high - low) / Math.max(1, about), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough) ?? 10 * power;
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, i) => (first + i) * step);
}

// ---- view -----------------------------------------------------------------------------------------------------------

export const element = (tag, parent, properties = {}, style = {}) => {
  const made = parent.appendChild(document.createElement(tag));
  Object.assign(made, properties), Object.assign(made.style, style);
  return made;
};

export class TimelineView {
  // `changed` hears of what the reader moved: playhead, request or play button.
  constructor(parent, look, changed = () => {}) {
    Object.assign(this, { look, changed, watchers: [], brackets: [], ghost: null, spans: null, low: 0, high: 1, least: 0, at: 0, request: null, playing: false });
    this.forget();
    this.off = new AbortController(); // ends every listener at once
    this.root = element("div", parent, {}, { position: "relative", font: FONT });
    this.bar = element("div", this.root, {}, { display: "flex", flexWrap: "wrap", gap: "4px", margin: "4px 0" });
    const button = (text, title, act) => element("button", this.bar, { type: "button", textContent: text, title, onclick: act });
    button("start", "to the first span (Home)", () => this.seek(0));
    button("back", "to the one before (,)", () => this.step(-1));
    this.player = button("play", "cross the visible stretch in 10 s (space)", () => this.play(!this.playing));
    button("step", "to the next one (.)", () => this.step(1));
    this.stop = element("select", this.bar, { ariaLabel: "what back and step go to", hidden: true });
    button("end", "to the end (End)", () => this.seek(this.spans.end));
    button("−", "zoom out (-)", () => this.zoom(2)), button("+", "zoom in (+)", () => this.zoom(0.5));
    button("all", "the whole timeline (0)", () => this.fit());
    this.speed = element("select", this.bar, { ariaLabel: "speed" });
    for (const [name, slower] of Object.entries(SLOWER)) this.speed.append(new Option(name, slower));
    this.chooser = element("select", this.bar, { ariaLabel: "request", onchange: () => this.choose(this.chooser.value) });
    this.canvas = element("canvas", this.root, { tabIndex: 0 }, { display: "block", width: "100%", touchAction: "none" });
    this.canvas.setAttribute("role", "application");
    this.sentence = element("p", this.root, { ariaLive: "polite" }, { minHeight: "2.6em", margin: "4px 0" });
    const keys = element("details", this.root, {}, { margin: "4px 0", opacity: 0.85 });
    element("summary", keys, { textContent: "keys and mouse" }), element("p", keys, { textContent: KEYS }, { margin: "4px 0" });
    this.tip = element("div", this.root, { hidden: true }, {
      position: "absolute", pointerEvents: "none", padding: "3px 6px", border: "1px solid", maxWidth: "320px", zIndex: 2 });
    this.listen();
  }

  // Begins anew, as for another run.
  forget() { this.spans = new Spans(this.look.map(({ kind }) => kind)); }

  // `act` is called whenever this view is drawn.
  watch(act) { this.watchers.push(act); }

  listen() {
    const on = (target, names, act) => names.split(" ").forEach((name) => target.addEventListener(name, act, { signal: this.off.signal }));
    on(this.canvas, "keydown", (event) => this.key(event));
    on(this.canvas, "pointerdown", (event) => this.press(event));
    on(this.canvas, "pointermove", (event) => this.point(event));
    on(this.canvas, "pointerup pointercancel", (event) => this.release(event));
    on(this.canvas, "pointerleave", () => (this.tip.hidden = true));
    on(this.canvas, "focus blur", () => this.redraw());
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false, signal: this.off.signal });
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    on(this.dark, "change", () => this.redraw());
    this.themes = new MutationObserver(() => this.redraw()); // JupyterLab says its theme on the body
    this.themes.observe(document.body, { attributeFilter: ["data-jp-theme-light"] });
    this.sizes = new ResizeObserver(() => this.redraw());
    this.sizes.observe(this.canvas);
  }

  close() {
    this.play(false);
    this.off.abort(), this.themes.disconnect(), this.sizes.disconnect(), cancelAnimationFrame(this.frame);
    this.root.remove();
  }

  // New spans; a view that showed the end goes on showing it. False where chunks are missing.
  add(header, bytes) {
    const end = this.spans.end, followed = this.high >= end;
    if (!this.spans.take(header, bytes)) return false;
    if (!end) this.fit();
    else if (followed) this.window(this.low && this.low + this.spans.end - end, Math.max(this.high, this.spans.end));
    const known = this.chooser.options.length - 1;
    if (known < 0) element("option", this.chooser, { value: "", textContent: "all requests" });
    if (known !== this.spans.requests.length)
      this.chooser.replaceChildren(this.chooser.options[0], ...this.spans.requests.map((r) => new Option(`request ${r}`, r)));
    this.chooser.value = this.request ?? "";
    this.say();
    return true;
  }

  // -- what a reader does

  fit() { this.window(0, this.whole * 1.01); }
  get whole() { return Math.max(this.spans.end, this.least) || 1e6; } // ns; without spans 1 ms

  window(low, high) {
    const most = this.whole * 1.2, span = Math.min(Math.max(high - low, 100), most);
    this.low = Math.min(Math.max(low, -0.1 * span), Math.max(0, this.spans.end - 0.1 * span));
    this.high = this.low + span;
    this.redraw();
  }

  zoom(factor, around = this.at >= this.low && this.at <= this.high ? this.at : (this.low + this.high) / 2) {
    this.window(around - (around - this.low) * factor, around + (this.high - around) * factor);
  }

  pan(share) { this.window(this.low + share * (this.high - this.low), this.high + share * (this.high - this.low)); }

  seek(ns, tell = true) {
    this.at = Math.max(0, Math.min(this.spans.end, ns));
    const span = this.high - this.low;
    if (this.at < this.low || this.at > this.high) this.window(this.at - 0.1 * span, this.at + 0.9 * span);
    this.say();
    this.redraw();
    if (tell) this.changed(this);
  }

  // Names of what back and step go to, each with its times; without times, every start and end of a span.
  offer(stops) {
    const names = Object.keys(stops).filter((name) => !stops[name] || stops[name].length), chosen = this.stop.value;
    this.stops = stops, this.stop.hidden = names.length < 2;
    this.stop.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) this.stop.value = chosen;
  }

  step(direction) {
    const times = this.stops?.[this.stop.value], found = times && (direction > 0 ? times.find((at) => at > this.at) : times.findLast((at) => at < this.at));
    this.play(false), this.seek(times ? found ?? this.at : this.spans.step(this.at, direction, this.request));
  }

  choose(request, tell = true) {
    this.request = request === "" || request === null ? null : Number(request);
    this.chooser.value = this.request ?? "";
    this.say();
    this.redraw();
    if (tell) this.changed(this);
  }

  play(on, tell = true) {
    if (on === this.playing) return;
    this.playing = on;
    this.player.textContent = on ? "pause" : "play";
    if (on && this.at >= this.spans.end) this.at = 0;
    let last = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      this.seek(this.at + ((this.high - this.low) * (now - last)) / 1e3 / PLAY_S / this.speed.value, false);
      last = now;
      if (this.at >= this.spans.end) this.play(false);
      else requestAnimationFrame(tick);
    };
    if (on) requestAnimationFrame(tick);
    if (tell) this.changed(this);
  }

  key(event) {
    const all = [null, ...this.spans.requests], here = all.indexOf(this.request);
    const turn = (by) => this.choose(all[(here + by + all.length) % all.length]);
    const act = {
      ",": () => this.step(-1), ".": () => this.step(1), Home: () => this.seek(0), End: () => this.seek(this.spans.end),
      ArrowLeft: () => this.pan(-0.1), ArrowRight: () => this.pan(0.1), "+": () => this.zoom(0.5), "=": () => this.zoom(0.5),
      "-": () => this.zoom(2), 0: () => this.fit(), " ": () => this.play(!this.playing), "[": () => turn(-1),
      "]": () => turn(1), Escape: () => this.choose(null),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault(), event.stopPropagation(); // JupyterLab has keys of its own
    act();
  }

  press(event) {
    this.canvas.focus({ preventScroll: true }), this.canvas.setPointerCapture(event.pointerId);
    this.drag = { x: event.offsetX, low: this.low, high: this.high, moved: false, scrub: event.offsetY < AXIS };
    if (this.drag.scrub) this.seek(this.time(event.offsetX));
  }

  point(event) {
    const drag = this.drag;
    if (!drag) return this.hover(event);
    drag.moved ||= Math.abs(event.offsetX - drag.x) > 3;
    if (drag.scrub) return this.seek(this.time(event.offsetX));
    const by = ((drag.x - event.offsetX) / this.width) * (drag.high - drag.low);
    if (drag.moved) this.window(drag.low + by, drag.high + by);
  }

  release(event) {
    if (this.drag && !this.drag.moved && !this.drag.scrub) this.seek(this.time(event.offsetX));
    this.drag = null;
  }

  wheel(event) {
    if (document.activeElement !== this.canvas) return; // else a page could not be scrolled past it
    event.preventDefault();
    this.zoom(Math.exp(0.002 * event.deltaY), this.time(event.offsetX));
  }

  hover(event) {
    const row = this.spans.rows[Math.floor((event.offsetY - AXIS) / ROW)];
    const near = (1.5 * (this.high - this.low)) / this.width, at = this.time(event.offsetX);
    const found = row && event.offsetX >= LABELS ? [...this.spans.within(row, at - near, at + near)] : [];
    this.tip.hidden = !found.length;
    if (!found.length) return;
    const here = found.filter((k) => this.spans.start[k] <= at && at < this.spans.stop[k]);
    const above = (event.offsetY - AXIS) % ROW < (ROW - BOX) / 2 + BOX / 3; // there a mixed pass has its rows' step
    const i = here.at(above ? -1 : 0) ?? found[0];
    const times = `start ${duration(this.spans.start[i])}, takes ${duration(this.spans.stop[i] - this.spans.start[i])}`;
    const more = found.length > 2 ? `; ${found.length} spans here, zoom in` : "";
    this.tip.textContent = `${row.name}: ${this.spans.words(i, this.look)}; ${times}${more}`;
    this.tip.style.left = `${Math.max(0, Math.min(event.offsetX + 12, this.canvas.clientWidth - 330))}px`;
    this.tip.style.top = `${this.canvas.offsetTop + event.offsetY + 16}px`;
  }

  say() {
    this.sentence.textContent = this.spans.sentence(this.at, this.request, this.look);
    this.sentence.ariaLive = this.playing ? "off" : "polite"; // not sixty times a second
    const end = duration(this.spans.end), rows = this.spans.rows.map((row) => row.name).join(", ");
    this.canvas.ariaLabel = `Timeline of ${this.spans.length} spans in ${end}, time to the right, rows from the top: ${rows}. ${KEYS}`;
  }

  // -- drawing

  get width() { return Math.max(1, this.canvas.clientWidth - LABELS - 8); }
  time(x) { return this.low + ((x - LABELS) / this.width) * (this.high - this.low); }
  x(ns) { return LABELS + ((ns - this.low) / (this.high - this.low)) * this.width; }

  redraw() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  draw() {
    const light = document.body.dataset.jpThemeLight, dark = light ? light === "false" : this.dark.matches;
    const colours = (this.colours = THEMES[dark ? "dark" : "light"]), ratio = devicePixelRatio || 1;
    const wide = this.canvas.clientWidth, pen = (this.pen = this.canvas.getContext("2d")), entries = this.entries(wide);
    const below = AXIS + ROW * Math.max(1, this.spans.rows.length), height = below + LEGEND * (1 + (entries.at(-1)?.line ?? 0));
    Object.assign(this.root.style, { colorScheme: dark ? "dark" : "light", color: colours.ink });
    Object.assign(this.tip.style, { background: colours.paper });
    this.canvas.style.height = `${height}px`;
    this.canvas.style.outline = document.activeElement === this.canvas ? `2px solid ${dark ? "#8ab4f8" : "#0b57d0"}` : "none";
    const size = [Math.round(wide * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== size[0]) this.canvas.width = size[0];
    if (this.canvas.height !== size[1]) this.canvas.height = size[1];
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = colours.paper, pen.fillRect(0, 0, wide, height);
    pen.font = FONT, pen.textBaseline = "middle";
    this.hatches = this.look.map((kind) => hatch(pen, kind.hatch, colours.hatch));
    this.axis();
    pen.save(), pen.beginPath(), pen.rect(LABELS, 0, this.width, height), pen.clip();
    this.spans.rows.forEach((row, i) => {
      pen.globalAlpha = this.request === null ? 1 : 0.2;
      this.row(row, AXIS + i * ROW + (ROW - BOX) / 2, null);
      pen.globalAlpha = 1;
      if (this.request !== null) this.row(row, AXIS + i * ROW + (ROW - BOX) / 2, this.request);
      this.shade(row.place, AXIS + (i + 1) * ROW - 5);
    });
    for (const bracket of this.brackets) this.bracket(bracket);
    this.playhead();
    pen.restore();
    this.legend(below + LEGEND / 2, entries);
    this.watchers.forEach((act) => act());
    if (this.spans.length && !this.drawn) this.drawn = performance.mark("timeline drawn");
  }

  axis() {
    const { pen, colours } = this, bottom = AXIS + ROW * this.spans.rows.length, inSeconds = this.high - this.low > 3e9;
    pen.strokeStyle = colours.line, pen.fillStyle = colours.ink, pen.lineWidth = 1, pen.textAlign = "center";
    for (const at of ticks(Math.max(0, this.low), this.high, this.width / 90)) {
      const x = Math.round(this.x(at)) + 0.5;
      pen.beginPath(), pen.moveTo(x, AXIS - 6), pen.lineTo(x, bottom), pen.stroke();
      pen.fillText(String(Number((at / (inSeconds ? 1e9 : 1e6)).toPrecision(9))), x, AXIS / 2 - 2);
    }
    pen.textAlign = "left", pen.fillText(inSeconds ? "time in s" : "time in ms", 8, AXIS / 2 - 2);
    this.spans.rows.forEach((row, i) => pen.fillText(row.name, 8, AXIS + (i + 0.5) * ROW, LABELS - 14));
  }

  // Wide spans as boxes. Narrow ones share pixel columns, whose height says how much of that time was busy. A step whose
  // rows decode in a pass takes the upper third of it.
  row(row, top, request) {
    const { pen, spans } = this, kinds = this.look.length, busy = new Float32Array((Math.ceil(this.width) + 1) * kinds);
    const scale = this.width / (this.high - this.low);
    let before; // the span before on this row
    for (const i of spans.within(row, this.low, this.high)) {
      const pass = spans.rides(i, before, this.look) ? before : null;
      before = i;
      if (request !== null && !spans.has(i, request)) continue;
      const left = (spans.start[i] - this.low) * scale, right = (spans.stop[i] - this.low) * scale, tall = pass === null ? 1 : 1 / 3;
      if (right - left >= WIDE)
        this.box(spans.kind[i], LABELS + Math.max(left, -9), LABELS + Math.min(right, this.width + 9), top, tall * BOX);
      else for (let p = Math.max(0, Math.floor(left)); p <= right && p < this.width; p++) {
        const share = tall * (Math.min(right, p + 1) - Math.max(left, p));
        busy[p * kinds + spans.kind[i]] += share;
        if (pass !== null && (request === null || spans.has(pass, request))) busy[p * kinds + spans.kind[pass]] -= share;
      }
    }
    for (let k = 0; k < busy.length; k++) {
      if (busy[k] <= 0) continue;
      const p = Math.floor(k / kinds), below = busy.slice(p * kinds, k).reduce((sum, share) => sum + share, 0);
      const tall = Math.max(3, Math.min(1, busy[k]) * BOX);
      pen.fillStyle = this.look[k % kinds].colour;
      pen.fillRect(LABELS + p, Math.max(top, top + BOX - Math.min(1, below) * BOX - tall), 1, tall);
    }
  }

  box(kind, left, right, top, tall = BOX) {
    const { pen } = this, edge = right - left > 4 ? 0.5 : 0;
    pen.fillStyle = this.look[kind].colour, pen.fillRect(left, top, right - left - edge, tall);
    if (right - left < HATCHED || !this.hatches[kind]) return;
    this.hatches[kind].setTransform(new DOMMatrix().translate(left, top)); // it moves with its box
    pen.fillStyle = this.hatches[kind], pen.fillRect(left, top, right - left - edge, tall);
  }

  // What another run did in this row, as a grey line under it.
  shade(place, y) {
    const { pen, ghost } = this, row = ghost?.rows.find((known) => known.place === place);
    pen.fillStyle = "#8a9099";
    for (const i of row ? ghost.within(row, this.low, this.high) : [])
      pen.fillRect(this.x(ghost.start[i]), y, Math.max(1, this.x(ghost.stop[i]) - this.x(ghost.start[i])), 4);
  }

  // A measured stretch of a row, with its words.
  bracket({ place, start, end, words }) {
    const { pen, colours } = this, i = this.spans.rows.findIndex((row) => row.place === place);
    const y = AXIS + i * ROW + 4.5, x0 = this.x(start), x1 = this.x(end), room = pen.measureText(words).width + 8;
    if (i < 0) return;
    pen.strokeStyle = colours.ink, pen.lineWidth = 1.5;
    pen.beginPath(), pen.moveTo(x0, y + 7), pen.lineTo(x0, y), pen.lineTo(x1, y), pen.lineTo(x1, y + 7), pen.stroke();
    const x = x1 - x0 > room ? (x0 + x1) / 2 - room / 2 : Math.min(x1 + 3, LABELS + this.width - room);
    pen.fillStyle = colours.paper, pen.fillRect(x, y + 4, room, 14);
    pen.fillStyle = colours.ink, pen.fillText(words, x + 4, y + 12);
  }

  playhead() {
    const { pen, colours } = this, x = Math.round(this.x(this.at)) + 0.5, bottom = AXIS + ROW * this.spans.rows.length;
    pen.strokeStyle = pen.fillStyle = colours.ink, pen.lineWidth = 1.5;
    pen.beginPath(), pen.moveTo(x, AXIS - 4), pen.lineTo(x, bottom), pen.stroke();
    pen.beginPath(), pen.moveTo(x - 6, AXIS - 10), pen.lineTo(x + 6, AXIS - 10), pen.lineTo(x, AXIS - 2), pen.fill();
  }

  // What the legend names, and where; it takes more lines where it is narrow.
  entries(wide) {
    const present = new Set(this.spans.kind.slice(0, 5000)), shown = new Set(this.look.filter((_, k) => present.has(k)).map(({ name }) => name));
    const indent = wide < 500 ? 8 : LABELS, found = [];
    let x = indent, line = 0;
    this.pen.font = FONT;
    for (const name of shown) {
      const k = this.look.findIndex((kind) => kind.name === name), room = 28 + this.pen.measureText(this.look[k].words).width;
      if (x > indent && x + room > wide) (x = indent), line++;
      found.push({ k, x, line }), (x += room + 18);
    }
    return found;
  }

  legend(y, entries) {
    for (const { k, x, line } of entries) {
      this.box(k, x, x + 22, y + line * LEGEND - BOX / 2 + 1);
      this.pen.fillStyle = this.colours.ink, this.pen.fillText(this.look[k].words, x + 28, y + line * LEGEND + 1);
    }
  }
}

// A pattern that tells kinds apart without colour: strokes, dots, or crosses; none for "".
function hatch(pen, name, colour) {
  if (!name) return null;
  const tile = document.createElement("canvas"), brush = tile.getContext("2d");
  tile.width = tile.height = 8;
  brush.strokeStyle = brush.fillStyle = colour, brush.lineWidth = 1.2;
  if (name[0] === ".") brush.fillRect(1, 1, 2, 2), brush.fillRect(5, 5, 2, 2);
  else for (const d of [-8, 0, 8]) {
    brush.moveTo(d, 8), brush.lineTo(d + 8, 0);
    if (name[0] === "x") brush.moveTo(d, 0), brush.lineTo(d + 8, 8);
  }
  brush.stroke();
  return pen.createPattern(tile, "repeat");
}
