// The exported page: the system, the timeline, a slider tied to their playhead, and the blocks of each memory at that
// time. Follows canvas.js and flow.js in one script.

const CELL = 18, BETWEEN = 2;
const STATES = ["free", "in flight", "used", "quarantined"];

const read = (id) => Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));

function drawBlocks(pool, canvas, request, colours, requests) {
  const wide = canvas.clientWidth, across = Math.max(1, Math.floor(wide / CELL)), ratio = devicePixelRatio || 1;
  const height = Math.ceil(pool.shown / across) * CELL + 2, pen = canvas.getContext("2d");
  canvas.style.height = `${height}px`, canvas.width = Math.round(wide * ratio), canvas.height = Math.round(height * ratio);
  pen.scale(ratio, ratio), (pen.font = "10px system-ui, sans-serif"), (pen.textAlign = "center"), (pen.textBaseline = "middle");
  for (let b = 0; b < pool.shown; b++) {
    const x = (b % across) * CELL + 1, y = Math.floor(b / across) * CELL + 1, size = CELL - BETWEEN, owner = pool.owners[b];
    pen.globalAlpha = request !== null && owner !== request ? 0.25 : 1;
    pen.strokeStyle = pen.fillStyle = owner < 0 ? colours.line : requests[owner % requests.length];
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
  const slider = document.getElementById("scrub"), tied = (view) => (slider.value = view.at / 1e6);
  const view = new TimelineView(document.getElementById("timeline"), data.look, tied);
  const flow = new FlowView(document.getElementById("flow"), view);
  view.add(data.header, read("columns"));
  flow.show(data.flow, read("flows"), read("moves"));
  const blocks = flow.flow.blocks;
  const parts = blocks.pools.filter((pool) => pool.shown).map((pool) => {
    const part = document.getElementById("pages");
    element("h3", part, { textContent: pool.name });
    const canvas = element("canvas", part, { role: "img" });
    return { pool, canvas, words: element("p", part) };
  });
  view.watch(() => {
    tied(view), slider.ariaValueText = duration(view.at);
    blocks.seek(view.at);
    for (const { pool, canvas, words } of parts) {
      drawBlocks(pool, canvas, view.request, view.colours, data.flow.requests);
      canvas.ariaLabel = words.textContent = blockWords(pool);
    }
  });
  slider.max = view.spans.end / 1e6;
  slider.addEventListener("input", () => view.seek(1e6 * slider.value));
  view.draw();
}

open();
