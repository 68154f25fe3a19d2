// An instrument: controls, the run that follows from them as flow, timeline, curve and figures, and one playhead for all.
// Python answers what is asked: a kernel by a widget's messages, or Pyodide in a worker (site).

import { FONT, TimelineView, element, ticks } from "./canvas.js";
import { FlowView, flowWords } from "./flow.js";

const SILENT_MS = 6000; // without an answer for so long nobody listens any more
const SILENT = "Nothing answers: the kernel was restarted, or is busy with another cell. Wait for it, or run this cell again.";

export class InstrumentView {
  // `ask(id, settings)` has to lead to `take(id, answer, columns)` or `refuse(id, words)`; `changed` hears of playhead and request.
  constructor(parent, spec, look, ask, changed = () => {}) {
    Object.assign(this, { spec, ask, changed, asked: 0, pending: false, wanted: null, past: [], pinned: null, shown: null, longest: 0, patience: SILENT_MS, linked: () => {} });
    this.root = element("div", parent, { className: "instrument", view: this }, { font: FONT });
    if (spec.title) element("div", this.root, { className: "title", textContent: spec.title });
    this.form = element("form", this.root, { className: "controls", onsubmit: (event) => event.preventDefault() });
    this.inputs = spec.controls.map((control) => this.control(control));
    if (this.inputs.length) this.buttons();
    this.alert = element("p", this.root, { className: "refused", hidden: true });
    this.alert.setAttribute("role", "alert");
    this.figures = element("div", this.root, { className: "figures" });
    const views = element("div", this.root, { className: "views" });
    const flowAt = element("div", views);
    this.timeline = new TimelineView(views, look, () => this.changed(this));
    this.timeline.root.hidden = !spec.views.includes("timeline");
    if (spec.views.includes("flow")) this.flow = new FlowView(flowAt, this.timeline, spec.part);
    if (spec.views.includes("curve")) this.curve = new CurveView(element("div", views, { className: "curve" }), this.timeline, (name, x) => this.pull(name, x));
    this.initial = this.settings;
  }

  control({ name, label, values, options, at }) {
    const box = element("label", this.form, { className: "control" }), words = element("span", box, { textContent: label });
    if (options) {
      const input = element("select", box, { name });
      options.forEach(([value, text]) => input.append(new Option(text, value)));
      input.selectedIndex = at;
      return this.wired({ name, input, get: () => input.value, set: (text) => (input.value = text) });
    }
    const shown = element("output", words), input = element("input", box, { type: "range", name, min: 0, max: values.length - 1, step: 1, value: at });
    const say = () => (shown.textContent = ` ${values[input.value]}`, input.ariaValueText = String(values[input.value]));
    say(), input.addEventListener("input", say);
    const set = (text) => (input.value = Math.max(0, values.findIndex((value) => String(value) === String(text))), say());
    return this.wired({ name, input, get: () => String(values[input.value]), set });
  }

  wired(control) {
    control.input.addEventListener("pointerdown", () => (this.before = this.settings));
    control.input.addEventListener("keydown", () => (this.before = this.settings));
    control.input.addEventListener("input", () => this.want());
    control.input.addEventListener("change", () => this.past.push(this.before ?? this.initial));
    control.input.addEventListener("keydown", (event) => event.stopPropagation()); // JupyterLab has keys of its own
    return control;
  }

  buttons() {
    const bar = element("div", this.form, { className: "buttons" });
    const button = (textContent, title, onclick) => element("button", bar, { type: "button", textContent, title, onclick });
    button("Undo", "to the setting before", () => this.past.length && this.put(this.past.pop()));
    button("Reset", "to the setting at the start", () => (this.past.push(this.settings), this.put(this.initial)));
    this.pinner = button("Pin this", "keep this run in grey behind the next ones", () => this.pin());
    button("Link", "the setting as text", () => this.link());
    for (const [name, title] of Object.entries(this.spec.acts ?? {})) this.actor = button(name, title, () => this.act(name));
    this.address = element("input", bar, { readOnly: true, hidden: true, ariaLabel: "the setting as text" });
  }

  get settings() { return Object.fromEntries(this.inputs.map((one) => [one.name, one.get()])); }

  put(settings) {
    for (const one of this.inputs) one.set(settings[one.name] ?? this.initial[one.name]);
    this.want();
  }

  link() {
    this.address.hidden = false, this.address.value = new URLSearchParams(this.settings).toString();
    this.linked(this.settings), this.address.select(), navigator.clipboard?.writeText(this.address.value).catch(() => {});
  }

  pin() {
    this.pinned = this.pinned ? null : this.shown && { said: this.shown, spans: this.timeline.spans };
    this.pinner.textContent = this.pinned ? "Unpin" : "Pin this";
    this.timeline.ghost = this.pinned?.spans ?? null;
    if (this.curve) this.curve.ghost = this.pinned?.said.curve ?? null;
    this.timeline.redraw(), this.tell();
  }

  act(name) {
    if (!this.pinned) this.pin(); // the simulated run stays beside the real one
    this.ask(++this.asked, this.settings, name);
  }

  // A handle of the curve that is dragged to `x`: its control takes the nearest of its values.
  pull(name, x) {
    const one = this.inputs.find((input) => input.name === name), { values } = this.spec.controls.find((control) => control.name === name);
    const nearest = values.reduce((best, value) => (Math.abs(value - x) < Math.abs(best - x) ? value : best));
    if (one.get() === String(nearest)) return;
    this.past.push(this.settings), one.set(nearest), this.want();
  }

  // -- asking and being answered: one question at a time, and then only the newest

  want() {
    this.wanted = this.settings;
    if (!this.pending) this.next();
  }

  next() {
    if (!this.wanted) return;
    this.pending = true, this.root.ariaBusy = "true";
    const settings = this.wanted;
    this.wanted = null, (this.since = performance.now());
    clearTimeout(this.silence);
    this.silence = setTimeout(() => ((this.pending = false), this.complain(SILENT)), this.patience);
    this.ask(++this.asked, settings);
  }

  complain(words) { this.alert.textContent = words, this.alert.hidden = !words; }

  settled(id) {
    if (id !== this.asked) return false;
    clearTimeout(this.silence);
    this.pending = false, this.root.ariaBusy = "false";
    requestAnimationFrame(() => this.since && performance.measure("answered", { start: this.since }));
    setTimeout(() => this.next());
    return true;
  }

  refuse(id, words) { if (!id || this.settled(id)) this.complain(words); }

  take(id, said, columns) {
    if (id && id !== this.asked) return; // an answer to an older question
    if (id) this.settled(id);
    this.complain(""), (this.shown = said);
    const [spans, packed, moves] = columns, { timeline } = this, zoomed = this.longest && timeline.high < this.longest;
    timeline.forget(), timeline.add(said.header, spans);
    timeline.brackets = said.brackets;
    this.keepAxis();
    if (!zoomed) timeline.fit();
    if (timeline.request !== null && !timeline.spans.requests.includes(timeline.request)) timeline.choose(null);
    this.flow?.show(said.flow, packed, moves);
    this.curve?.show(said.curve);
    timeline.seek(said.at ?? (id || timeline.at ? timeline.at : timeline.spans.end / 2), false);
    this.tell();
  }

  // The axis stays, so that longer looks longer.
  keepAxis() { this.timeline.least = this.longest = Math.max(this.longest, this.timeline.spans.end); }

  // Where the pinned run's settings are others than the present ones.
  pinnedWords() {
    const text = ({ name, options = [] }, { settings }) => options.find(([value]) => value === settings[name])?.[1] ?? settings[name];
    const other = this.spec.controls.filter(({ name }) => this.pinned.said.settings[name] !== this.shown.settings[name]);
    return `Pinned: ${other.map((one) => `${one.label} ${text(one, this.pinned.said)}`).join("; ") || "the present settings"}.`;
  }

  tell() {
    const { shown, pinned } = this, old = new Map(pinned?.said.facts ?? []);
    this.figures.replaceChildren();
    element("p", this.figures, { className: "sentence", textContent: shown.sentence });
    if (pinned) element("p", this.figures, { className: "ghost", textContent: this.pinnedWords() });
    const facts = element("div", this.figures, { className: "facts" });
    for (const [name, value] of shown.facts) {
      const fact = element("span", facts, { textContent: `${name} ` });
      element("b", fact, { textContent: value });
      if (old.has(name)) element("span", fact, { className: "ghost", textContent: ` (pinned: ${old.get(name)})` });
    }
    if (this.actor) this.actor.textContent = shown.act ?? this.actor.textContent;
    this.beside(shown);
  }

  // The answers so far, or the words and the table of a moment.
  beside({ texts = [], words = [], rows = [] }) {
    for (const text of texts) element("p", this.figures, { className: "answer", textContent: text });
    words.forEach((text, k) => element("p", this.figures, { className: k ? "why" : "sentence", textContent: text }));
    if (!rows.length) return;
    const table = element("table", this.figures, { className: "state" });
    for (const [name, before, after] of [["", "before", "after"], ...rows]) {
      const line = element("tr", table, { className: name && before !== after ? "changed" : "" });
      for (const text of [name, before, after]) element(name ? "td" : "th", line, { textContent: text });
    }
  }

  close() {
    clearTimeout(this.silence);
    this.flow?.close(), this.timeline.close();
    this.root.remove();
  }
}

// Lines in a plane, and the point that moves on them; the pinned run's point stays in grey. `pulled(name, x)` hears of
// handles: upright lines that are dragged.
class CurveView {
  constructor(parent, timeline, pulled) {
    Object.assign(this, { timeline, pulled, plane: null, ghost: null, held: null });
    this.canvas = element("canvas", parent, {}, { display: "block", width: "100%", height: "190px" });
    this.canvas.setAttribute("role", "img");
    timeline.watch(() => this.plane && this.draw());
    this.canvas.onpointerdown = (event) => {
      this.held = this.near(event.offsetX);
      if (this.held) this.canvas.setPointerCapture(event.pointerId);
    };
    this.canvas.onpointermove = (event) => {
      this.canvas.style.cursor = this.held || this.near(event.offsetX) ? "ew-resize" : "";
      if (this.held) this.pulled(this.held, this.value(event.offsetX));
    };
    this.canvas.onpointerup = this.canvas.onpointercancel = () => (this.held = null);
  }

  near(x) {
    const [found] = (this.plane?.handles ?? []).map(([name, at]) => [name, Math.abs(this.across(at) - x)]).sort((a, b) => a[1] - b[1]);
    return found?.[1] < 12 ? found[0] : null;
  }

  show(plane) { this.plane = plane; }

  draw() {
    const { canvas, plane, ghost } = this, { ink, paper, line: grid } = this.timeline.colours, ratio = devicePixelRatio || 1;
    const wide = canvas.clientWidth, tall = 190, pen = canvas.getContext("2d"), left = 52, foot = 36, top = 12, right = 14;
    canvas.width = Math.round(wide * ratio), canvas.height = Math.round(tall * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0), (pen.font = FONT), (pen.textBaseline = "middle");
    pen.fillStyle = paper, pen.fillRect(0, 0, wide, tall);
    const every = [...plane.lines.flatMap(([, line]) => line), ...plane.points.map(([, point]) => point), ...plane.handles.map(([, at]) => [at, 0])];
    const scale = plane.log ? Math.log10 : (value) => value, xs = every.map(([x]) => scale(x)), ys = every.map(([, y]) => y);
    const low = Math.min(...xs), high = Math.max(...xs, low + 1e-9), most = 1.08 * Math.max(...ys, 1e-9), least = Math.min(0, ...ys);
    const x = (value) => left + ((scale(value) - low) / (high - low)) * (wide - left - right);
    this.across = x, (this.value = (at) => low + ((at - left) / (wide - left - right)) * (high - low));
    const y = (value) => tall - foot - ((value - least) / (most - least)) * (tall - foot - top);
    pen.strokeStyle = grid, pen.fillStyle = ink, pen.lineWidth = 1;
    for (const at of ticks(least, most, 4)) {
      pen.beginPath(), pen.moveTo(left, y(at)), pen.lineTo(wide - right, y(at)), pen.stroke();
      pen.textAlign = "right", pen.fillText(String(Number(at.toPrecision(3))), left - 6, y(at));
    }
    pen.textAlign = "center";
    for (const at of ticks(low, high, wide / 110)) {
      const value = plane.log ? 10 ** at : at;
      pen.fillText(String(Number(value.toPrecision(2))), x(value), tall - foot + 12);
    }
    pen.fillText(plane.x, (left + wide - right) / 2, tall - 8), (pen.textAlign = "left"), pen.fillText(plane.y, left + 6, top);
    const colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"];
    plane.lines.forEach(([name, line], k) => {
      pen.strokeStyle = colours[k % 4], pen.lineWidth = 2, pen.setLineDash(k ? [6, 4 - (k % 2) * 2] : []);
      pen.beginPath(), line.forEach(([a, b], i) => (i ? pen.lineTo(x(a), y(b)) : pen.moveTo(x(a), y(b)))), pen.stroke();
      const [a, b] = line[Math.floor(line.length * 0.7)] ?? line.at(-1);
      pen.fillStyle = ink, pen.fillText(name, Math.min(x(a), wide - right - pen.measureText(name).width), Math.max(top + 12, y(b) - 10));
    });
    pen.setLineDash([]);
    for (const [name, at] of plane.handles) {
      const mark = x(at);
      pen.strokeStyle = pen.fillStyle = "#D55E00", pen.lineWidth = 3;
      pen.beginPath(), pen.moveTo(mark, top), pen.lineTo(mark, tall - foot), pen.stroke();
      pen.beginPath(), pen.roundRect(mark - 7, tall - foot - 26, 14, 22, 4), pen.fill();
      pen.fillStyle = ink, pen.fillText(`${name} ${at}`, Math.min(mark + 10, wide - right - pen.measureText(`${name} ${at}`).width), tall - foot - 14);
    }
    for (const [name, [a, b]] of [...(ghost?.points.map(([, point]) => ["pinned", point]) ?? []), ...plane.points]) {
      pen.fillStyle = name === "pinned" ? "#9aa0a6" : "#D55E00";
      pen.beginPath(), pen.arc(x(a), y(b), 6, 0, 7), pen.fill();
      pen.fillStyle = ink, pen.fillText(name, Math.min(x(a) + 10, wide - right - pen.measureText(name).width), y(b) + 14);
    }
    canvas.ariaLabel = `${plane.y} over ${plane.x}. ${plane.points.map(([name, [a, b]]) => `${name} at ${a.toPrecision(3)}, ${b.toPrecision(3)}`).join("; ")}.`;
  }
}

// ---- the live widget: anywidget calls this for every place where the widget is shown ------------------------------------

const bytes = (data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function render({ model, el }) {
  const tell = ({ timeline }) => {
    model.set({ at_ms: timeline.at / 1e6, request: timeline.request, playing: timeline.playing });
    model.save_changes();
  };
  const ask = (id, settings, act) => model.send({ id, settings, act });
  const view = new InstrumentView(el, model.get("spec"), model.get("look"), ask, tell), { timeline } = view;
  const hear = ({ id, refusal }) => view.refuse(id, refusal);
  const answer = () => view.take(model.get("said").id, model.get("said"), model.get("columns").map(bytes));
  const seek = () => Math.abs(timeline.at / 1e6 - model.get("at_ms")) > 1e-9 && timeline.seek(model.get("at_ms") * 1e6, false);
  const choose = () => timeline.choose(model.get("request"), false), play = () => timeline.play(model.get("playing"), false);
  const heard = { "msg:custom": hear, "change:said": answer, "change:at_ms": seek, "change:request": choose, "change:playing": play };
  for (const [name, act] of Object.entries(heard)) model.on(name, act);
  answer(), model.get("at_ms") && seek(), choose(), play();
  return () => {
    for (const [name, act] of Object.entries(heard)) model.off(name, act);
    view.close();
  };
}

export default { render };
