// A chapter's page: every instrument in it asks the one worker, in which the simulator runs.

import { InstrumentView } from "./instrument.js";

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const views = new Map(); // scene → its views
const given = new URLSearchParams(location.hash.slice(1)); // the setting of a link: scene=03&layers=30&…

worker.onmessage = ({ data }) => {
  if (data.ready) performance.mark("python ready");
  for (const view of views.get(data.scene) ?? (data.broken ? [...views.values()].flat() : [])) {
    if (data.broken) view.complain(`The simulator stopped: ${data.broken}. Load the page again.`);
    else if (data.view !== view.number) continue;
    else if (data.refusal) view.refuse(data.id, `Refused: ${data.refusal}.`);
    else view.take(data.id, data.said, data.columns);
  }
};

async function open(place, number) {
  const scene = place.dataset.scene, { spec, look, said, columns } = await (await fetch(`scene-${scene}.json`)).json();
  const ask = (id, settings) => worker.postMessage({ id, view: number, scene, settings });
  const view = new InstrumentView(place, spec, look, ask);
  view.patience = 60_000; // Python is still loading when the first control moves
  view.number = number;
  views.set(scene, [...(views.get(scene) ?? []), view]);
  view.take(0, said, columns.map(bytes));
  view.linked = (settings) => history.replaceState(null, "", `#${new URLSearchParams({ scene, ...settings })}`);
  if (given.get("scene") === scene) view.put(Object.fromEntries(given)), place.scrollIntoView();
}

document.querySelectorAll(".scene").forEach(open);
