// An instrument: controls, the run that follows from them as flow, timeline, curve and figures, and one playhead for all.
// Python answers what is asked: a kernel by a widget's messages, or Pyodide in a worker (site).

import { FONT, TimelineView, element } from "./canvas.js";
import { CurveView } from "./curve.js";
import { FlowView } from "./flow.js";

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
    if (spec.views.includes("curve")) this.curve = new CurveView(element("div", views, { className: "curve" }), this.timeline, spec.controls, (name, x) => this.pull(name, x));
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
    const shown = element("b", words), input = element("input", box, { type: "range", name, min: 0, max: values.length - 1, step: 1, value: at });
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
