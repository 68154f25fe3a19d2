// The twin in a thread of its own: the page stays quick, and a newer wish ends the run that is under way.

import { loadPyodide } from "./pyodide/pyodide.mjs";

const SLICE = 1500; // actions between two looks into the inbox: some tens of milliseconds
let desk, wanted = null, running = false;

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
  while (wanted) {
    const { id, settings } = wanted, question = wanted;
    wanted = null;
    if (question.scene) {
      play(question);
      await lookUp();
      continue;
    }
    const refusal = desk.begin(JSON.stringify(settings));
    if (refusal) {
      postMessage({ id, refusal });
      continue;
    }
    while (!wanted && desk.advance(SLICE)) await lookUp();
    if (!wanted) answer(id);
    await lookUp();
  }
  running = false;
}

// A setting of an instrument: small enough to be answered in one go.
function play({ id, view, scene, settings }) {
  const found = desk.play(scene, JSON.stringify(settings)), [said, columns] = found.toJs();
  found.destroy();
  const { refusal, ...rest } = JSON.parse(said);
  postMessage({ id, view, scene, refusal, said: rest, columns }, columns.map((column) => column.buffer));
}

function answer(id) {
  const found = desk.answer(), [said, columns] = found.toJs();
  found.destroy();
  postMessage({ id, said: JSON.parse(said), columns }, columns.map((column) => column.buffer));
}

function log(id) {
  const found = desk.log(), bytes = found.toJs();
  found.destroy();
  postMessage({ id, log: bytes }, [bytes.buffer]);
}

const ready = load();
ready.then(() => postMessage({ ready: true }), (error) => postMessage({ broken: String(error).slice(-400) }));
onmessage = async ({ data }) => {
  await ready;
  if (data.log) return log(data.id);
  wanted = data;
  if (!running) run().catch((error) => postMessage({ broken: String(error).slice(-400) }));
};
