// The exported page: a slider tied to the playhead, and the blocks of each memory at that time. Follows canvas.js in one script.

const CELL = 18, GAP = 2;
// Not the colours of work: owners are no kind of span. The number in the cell tells them apart without colour.
const OWNERS = ["#56B4E9", "#F0E442", "#D55E00", "#9aa0a6", "#b8a2e3"];
const STATES = ["free", "in flight", "used", "quarantined"];

const read = (id) => Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));

// Who owns each block of each memory, replayed up to a time.
class Blocks {
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

function drawBlocks(pool, canvas, request, colours) {
  const wide = canvas.clientWidth, across = Math.max(1, Math.floor(wide / CELL)), ratio = devicePixelRatio || 1;
  const height = Math.ceil(pool.shown / across) * CELL + 2, pen = canvas.getContext("2d");
  canvas.style.height = `${height}px`, canvas.width = Math.round(wide * ratio), canvas.height = Math.round(height * ratio);
  pen.scale(ratio, ratio), (pen.font = "10px system-ui, sans-serif"), (pen.textAlign = "center"), (pen.textBaseline = "middle");
  for (let b = 0; b < pool.shown; b++) {
    const x = (b % across) * CELL + 1, y = Math.floor(b / across) * CELL + 1, size = CELL - GAP, owner = pool.owners[b];
    pen.globalAlpha = request !== null && owner !== request ? 0.25 : 1;
    pen.strokeStyle = pen.fillStyle = owner < 0 ? colours.line : OWNERS[owner % OWNERS.length];
    if (pool.states[b] === 1) pen.beginPath(), pen.moveTo(x, y + size), pen.lineTo(x + size, y + size), pen.lineTo(x + size, y), pen.fill();
    if (pool.states[b] > 1) pen.fillRect(x, y, size, size);
    pen.strokeRect(x + 0.5, y + 0.5, size - 1, size - 1);
    if (owner < 0) continue;
    pen.strokeStyle = "#222222";
    if (pool.states[b] === 3) pen.beginPath(), pen.moveTo(x, y), pen.lineTo(x + size, y + size), pen.stroke();
    pen.fillStyle = pool.states[b] === 1 ? colours.ink : "#222222", pen.fillText(owner, x + size / 2, y + size / 2 + 1, size);
  }
}

// "7 of 20 blocks held: request 0 7 used; request 1 …"
function blockWords(pool) {
  const held = new Map();
  pool.owners.forEach((owner, b) => {
    const words = `${owner < 0 ? "nobody" : `request ${owner}`}: # ${STATES[pool.states[b]]}`;
    if (owner >= 0) held.set(words, (held.get(words) ?? 0) + 1);
  });
  const parts = [...held].map(([words, count]) => words.replace("#", count)), all = [...held.values()].reduce((a, b) => a + b, 0);
  const more = parts.length > 8 ? `; and ${parts.length - 8} more` : "";
  return `${pool.name}: ${all} of ${pool.total} blocks held. ${parts.slice(0, 8).join("; ")}${more}`;
}

function open() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const view = new TimelineView(document.getElementById("timeline"), data.look, show);
  const blocks = new Blocks(data.pools, unpack(read("moves"))), slider = document.getElementById("scrub");
  const parts = blocks.pools.filter((pool) => pool.shown).map((pool) => {
    const part = document.getElementById("pages");
    element("h3", part, { textContent: pool.name });
    const canvas = element("canvas", part, { role: "img" });
    return { pool, canvas, words: element("p", part) };
  });
  let asked = 0;
  function show() {
    slider.value = view.at / 1e6, slider.ariaValueText = duration(view.at);
    cancelAnimationFrame(asked);
    asked = requestAnimationFrame(() => {
      blocks.seek(view.at);
      for (const { pool, canvas, words } of parts) {
        drawBlocks(pool, canvas, view.request, view.colours);
        canvas.ariaLabel = words.textContent = blockWords(pool);
      }
    });
  }
  view.moved = show;
  view.add(data.header, read("columns"));
  slider.max = view.spans.end / 1e6;
  slider.addEventListener("input", () => view.seek(1e6 * slider.value));
  addEventListener("resize", show);
  view.dark.addEventListener("change", () => requestAnimationFrame(show));
  view.draw(), show();
}

open();
