// The twin in a thread of its own: the page stays quick, and a newer wish ends the run that is under way.

import { loadPyodide } from "./pyodide/pyodide.mjs";

const SLICE = 1500; // actions between two looks into the inbox: some tens of milliseconds
let desk, running = false;
const wanted = new Map(); // view → its newest question

async function load() {
  const [python, packed] = await Promise.all([
    loadPyodide({ indexURL: new URL("./pyodide/", import.meta.url).href }),
    fetch(new URL("./disagg.zip", import.meta.url)).then((found) => {
      if (!found.ok) throw new Error(`disagg.zip: ${found.status}`);
      return found.arrayBuffer();
    }),
  ]);
  python.unpackArchive(packed, "zip", { extractDir: "/twin" });
  python.runPython("import sys; sys.path.insert(0, '/twin')");
  desk = python.pyimport("disagg.explorer.twin").Desk();
}

// The inbox is read between two slices only, and it is a task that gives way to it.
const inbox = new MessageChannel();
const lookUp = () => new Promise((go) => ((inbox.port1.onmessage = go), inbox.port2.postMessage(0)));

async function run() {
  running = true;
  while (wanted.size) {
    const [question] = wanted.values();
    wanted.delete(question.view);
    await answer(question);
    await lookUp();
  }
  running = false;
}

// A newer wish of the same view ends the run; it is answered in its turn.
async function answer({ id, view, scene, settings }) {
  const refusal = desk.begin(scene, JSON.stringify(settings));
  if (refusal) return postMessage({ id, view, refusal });
  while (!wanted.has(view) && desk.advance(SLICE)) await lookUp();
  if (wanted.has(view)) return;
  const found = desk.answer(), [said, columns] = found.toJs();
  found.destroy();
  postMessage({ id, view, said: JSON.parse(said), columns }, columns.map((column) => column.buffer));
}

function log() {
  const found = desk.log(), bytes = found.toJs();
  found.destroy();
  postMessage({ log: bytes }, [bytes.buffer]);
}

const ready = load();
ready.then(() => postMessage({ ready: true }), (error) => postMessage({ broken: String(error).slice(-400) }));
onmessage = async ({ data }) => {
  await ready;
  if (data.log) return log();
  wanted.set(data.view, data);
  if (!running) run().catch((error) => postMessage({ broken: String(error).slice(-400) }));
};
