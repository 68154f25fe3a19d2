// The explorer's page: controls and permalink on one side, the worker with the twin on the other, the canvas between.
// What comes from the address is text until Python has checked it; all text goes through textContent.

import { TimelineView, element } from "./canvas.js";
import { FlowView } from "./flow.js";

const find = (id) => document.getElementById(id);
const form = find("controls"), controls = [...form.elements].filter((one) => one.name);
const starts = Object.fromEntries(controls.map((one) => [one.name, one.value]));
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
let asked = 0, view = null, flow = null, shown = null, kept = null, late = 0, since = 0;

// ---- settings: controls and address --------------------------------------------------------------------------------

const chosen = () => Object.fromEntries(controls.map((one) => [one.name, one.value]));
const words = (settings) => new URLSearchParams(settings).toString();

// What the address says, as it stands there; a name that stands twice counts with its last text.
const addressed = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

// Shows what can be shown; whether all of it may be, Python says.
function fill(settings) {
  for (const one of controls) {
    const text = Object.hasOwn(settings, one.name) ? settings[one.name] : starts[one.name];
    one.value = text;
    if (one.value !== text) one.value = starts[one.name];
  }
  label();
}

function label() {
  for (const one of controls) if (one.type === "range") form.querySelector(`output[for="${one.name}"]`).textContent = one.value;
}

function remember() {
  const hash = `#${words(chosen())}`;
  find("permalink").href = hash;
  if (location.hash !== hash) history.replaceState(null, "", hash);
}

// ---- asking and being answered -------------------------------------------------------------------------------------

function ask(settings) {
  asked++, (since = performance.now());
  document.body.ariaBusy = "true";
  worker.postMessage({ id: asked, settings });
}

function changed() {
  label();
  ask(chosen());
  clearTimeout(late);
  late = setTimeout(remember, 300); // browsers limit how often an address may change
}

function refuse(text) {
  find("refusal").textContent = text;
  find("refusal").hidden = !text;
}

function take({ data }) {
  if (data.ready) performance.mark("python ready");
  if (data.broken) return refuse(`The twin stopped: ${data.broken}. Load the page again.`);
  if (data.log) return save(data.log);
  if (data.id !== asked) return; // an answer to an older question
  document.body.ariaBusy = "false";
  refuse(data.refusal ? `Refused: ${data.refusal}.` : "");
  if (data.refusal) find("said").textContent = shown ? "The picture still shows the last settings that can be." : "";
  else show(data.said, data.columns, data.id);
}

function show(said, columns, id) {
  shown = said;
  find("results").hidden = false;
  find("said").textContent = `${said.sentence} ${said.counts}`;
  view ??= new TimelineView(find("timeline"), said.look);
  flow ??= new FlowView(find("flow"), view);
  view.forget();
  view.add(said.header, columns[0]);
  flow.show(said.flow, columns[1], columns[2]);
  if (view.request !== null && !view.spans.requests.includes(view.request)) view.choose(null);
  view.seek(view.at, false);
  table();
  find("log").disabled = !id; // Python has the log of what it computed itself
  if (id) requestAnimationFrame(() => performance.measure("answered", { start: since }));
}

// The same answer, computed when the page was built: there is something to look at while Python loads.
async function showStart() {
  const { said, columns } = await (await fetch("start.json")).json();
  if (shown || asked > 1) return;
  show(said, columns.map((column) => Uint8Array.from(atob(column), (c) => c.charCodeAt(0))));
  find("said").append(" Computed when this page was built; Python is loading (12 MB), and then answers what you choose.");
}

function table() {
  const names = [...new Set([...shown.facts, ...(kept?.facts ?? [])].map(([name]) => name))];
  const value = (answer, name) => answer.facts.find(([known]) => known === name)?.[1] ?? "";
  const head = ["", "now", ...(kept ? ["kept"] : [])];
  const rows = names.map((name) => [name, value(shown, name), ...(kept ? [value(kept, name)] : [])]);
  find("numbers").replaceChildren(row(head, "th", "col"), ...rows.map((cells) => row(cells, "td")));
}

function row(cells, tag, scope) {
  const line = document.createElement("tr");
  cells.forEach((text, i) => element(i ? tag : "th", line, { textContent: text, scope: scope ?? (i ? "" : "row") }));
  return line;
}

function save(bytes) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type: "text/plain" }));
  link.download = "events.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- start ----------------------------------------------------------------------------------------------------------

function open() {
  const settings = addressed();
  fill(settings);
  find("permalink").href = `#${words(chosen())}`;
  ask(settings);
}

find("said").textContent = "Python is loading (12 MB, kept by the browser for the next time) …";
worker.onmessage = take;
worker.onerror = () => refuse("The twin could not be loaded: a file of this page is missing on its server.");
form.addEventListener("input", changed);
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", open);
find("keep").onclick = () => shown && ((kept = shown), table());
find("log").onclick = () => shown && worker.postMessage({ id: asked, log: true });
find("reset").onclick = () => (fill({}), changed());
open();
if (!location.hash) showStart();
