// The explorer: one instrument whose settings stand in the address, a pinned run beside the present one, and the event log.

import { TimelineView, element } from "./canvas.js";
import { SiteView, addressed, opened, worker } from "./pages.js";

const LONG_MS = 1000; // a run that has taken so long ends for a newer wish
const find = (id) => document.getElementById(id);
const said = find("said"), log = find("log");

// Another run under a timeline, on its axis; what is done to one is done to both.
class SecondTimeline extends TimelineView {
  constructor(parent, first, spans) {
    super(parent, first.look);
    Object.assign(this, { first, spans }), (this.bar.hidden = true), this.bar.style.display = "none";
    this.root.querySelector("details").hidden = true;
    this.follow();
  }

  follow() {
    const { low, high, at, request } = this.first;
    Object.assign(this, { low, high, at, request }), this.say(), this.redraw();
  }

  window(low, high) { this.first.window(low, high); }
  seek(ns) { this.first.seek(ns); }
  choose(request) { this.first.choose(request); }
  play(on) { this.first?.play(on); }
}

class ExplorerView extends SiteView {
  constructor(place, answer) {
    super(place, answer);
    this.root.insertBefore(said, this.figures);
    this.compared = element("div", this.root, { className: "beside", hidden: true });
    this.timeline.watch(() => this.second?.follow());
  }

  hash(settings) { return new URLSearchParams(settings); }

  want() {
    this.wanted = this.settings;
    if (!this.pending || performance.now() - this.since > LONG_MS) this.next();
    clearTimeout(this.late);
    this.late = setTimeout(() => this.remember(this.settings), 300); // browsers limit how often an address may change
  }

  take(id, answer, columns) {
    super.take(id, answer, columns);
    if (!id || id !== this.asked) return;
    said.textContent = answer.counts, log.disabled = false; // Python has the log of what it computed itself
  }

  refuse(id, words) {
    super.refuse(id, words);
    said.textContent = "The picture still shows the last settings that can be.";
  }

  // Both runs fit the axis.
  keepAxis() { this.timeline.least = this.longest = Math.max(this.timeline.spans.end, this.pinned?.spans.end ?? 0); }

  pin() {
    super.pin();
    this.second?.close(), (this.second = null), this.compared.replaceChildren(), (this.compared.hidden = !this.pinned);
    this.keepAxis(), this.timeline.fit();
    if (!this.pinned) return;
    element("h3", this.compared, { textContent: "The pinned run, on the same axis" });
    this.second = new SecondTimeline(this.compared, this.timeline, this.pinned.spans);
  }
}

function save({ data }) {
  if (!data.log) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data.log], { type: "text/plain" }));
  link.download = "events.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

said.textContent = "Computed when this page was built; Python is loading (12 MB, kept by the browser), and then answers what you choose.";
worker.addEventListener("message", save);
log.onclick = () => worker.postMessage({ log: true });
const view = await opened(find("explorer"), ExplorerView);
addEventListener("hashchange", () => view.follow(addressed()));
view.follow(addressed());
