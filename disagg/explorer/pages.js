// What the pages of the site share: one worker, in which the simulator runs, and instruments that ask it.

import { InstrumentView } from "./instrument.js";

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const views = [];
export const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });

worker.addEventListener("message", ({ data }) => {
  if (data.ready) performance.mark("python ready");
  if (data.broken) views.forEach((view) => view.complain(`The simulator stopped: ${data.broken}. Load the page again.`));
  else if (data.refusal) views[data.view].refuse(data.id, `Refused: ${data.refusal}.`);
  else if (data.said) views[data.view].take(data.id, data.said, data.columns);
});
worker.onerror = () =>
  views.forEach((view) => view.complain("The simulator could not be loaded: a file of this page is missing on its server."));

// What the address says, as it stands there; a name that stands twice counts with its last text.
export const addressed = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

export class SiteView extends InstrumentView {
  constructor(place, { spec, look, said, columns }) {
    super(place, spec, look, (id, settings) => worker.postMessage({ id, view: this.number, scene: this.scene, settings }));
    Object.assign(this, { scene: place.dataset.scene, number: views.push(this) - 1, patience: 60_000 }); // Python loads at first
    this.linked = (settings) => (this.remember(settings), (this.address.value = location.href));
    this.take(0, said, columns.map(bytes));
  }

  hash(settings) { return new URLSearchParams({ scene: this.scene, ...settings }); }
  remember(settings) { history.replaceState(null, "", `#${this.hash(settings)}`); }

  // Shows what can be shown of settings from outside; whether they can be, Python says.
  follow(settings) {
    for (const one of this.inputs) {
      const text = Object.hasOwn(settings, one.name) ? settings[one.name] : this.initial[one.name];
      one.set(text);
      if (one.get() !== text) one.set(this.initial[one.name]);
    }
    this.wanted = settings, this.next();
  }
}

export async function opened(place, View = SiteView) {
  return new View(place, await (await fetch(`scene-${place.dataset.scene}.json`)).json());
}
