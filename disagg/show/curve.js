// The curve of an instrument: the plane in which its run is a point.

import { FONT, element, ticks } from "./canvas.js";

// Lines in a plane, and the point that moves on them; the pinned run's point stays in grey. `pulled(name, x)` hears of
// handles: upright lines that are dragged.
export class CurveView {
  constructor(parent, timeline, controls, pulled) {
    Object.assign(this, { timeline, controls, pulled, plane: null, ghost: null, held: null });
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
    const scale = plane.log ? Math.log10 : (value) => value, back = plane.log ? (value) => 10 ** value : (value) => value;
    const xs = every.map(([x]) => scale(x)), ys = every.map(([, y]) => scale(y)), low = Math.min(...xs), high = Math.max(...xs, low + 1e-9);
    const least = plane.log ? Math.min(...ys) : Math.min(0, ...ys), most = least + 1.08 * Math.max(Math.max(...ys) - least, 1e-9);
    const x = (value) => left + ((scale(value) - low) / (high - low)) * (wide - left - right);
    this.across = x, (this.value = (at) => low + ((at - left) / (wide - left - right)) * (high - low));
    const y = (value) => tall - foot - ((scale(value) - least) / (most - least)) * (tall - foot - top);
    pen.strokeStyle = grid, pen.fillStyle = ink, pen.lineWidth = 1;
    for (const at of ticks(least, most, 4)) {
      const level = y(back(at));
      pen.beginPath(), pen.moveTo(left, level), pen.lineTo(wide - right, level), pen.stroke();
      pen.textAlign = "right", pen.fillText(String(Number(back(at).toPrecision(3))), left - 6, level);
    }
    pen.textAlign = "center";
    for (const at of ticks(low, high, wide / 110)) {
      pen.fillText(String(Number(back(at).toPrecision(2))), x(back(at)), tall - foot + 12);
    }
    pen.fillText(plane.x, (left + wide - right) / 2, tall - 8), (pen.textAlign = "left"), pen.fillText(plane.y, left + 6, top);
    const colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7"];
    plane.lines.forEach(([name, line], k) => {
      pen.strokeStyle = colours[k % 4], pen.lineWidth = 2, pen.setLineDash(k ? [6, 4 - (k % 2) * 2] : []);
      pen.beginPath(), line.forEach(([a, b], i) => (i ? pen.lineTo(x(a), y(b)) : pen.moveTo(x(a), y(b)))), pen.stroke();
      const [a, b] = line[Math.floor(line.length * 0.7)] ?? line.at(-1);
      const level = y(b) < top + 22 ? y(b) + 14 : y(b) - 10, from = Math.min(x(a), wide - right - pen.measureText(name).width);
      pen.strokeStyle = paper, pen.lineWidth = 4, pen.setLineDash([]), pen.strokeText(name, from, level);
      pen.fillStyle = ink, pen.fillText(name, from, level);
    });
    pen.setLineDash([]);
    plane.handles.forEach(([name, at], k) => {
      const mark = x(at), knob = tall - foot - 26 - 26 * k, words = `${this.controls.find((control) => control.name === name).label} ${at}`;
      pen.strokeStyle = pen.fillStyle = "#D55E00", pen.lineWidth = 3;
      pen.beginPath(), pen.moveTo(mark, top), pen.lineTo(mark, tall - foot), pen.stroke();
      pen.beginPath(), pen.roundRect(mark - 7, knob, 14, 22, 4), pen.fill();
      pen.fillStyle = ink, pen.fillText(words, Math.min(mark + 10, wide - right - pen.measureText(words).width), knob + 12);
    });
    for (const [name, [a, b]] of [...(ghost?.points.map(([, point]) => ["pinned", point]) ?? []), ...plane.points]) {
      pen.fillStyle = name === "pinned" ? "#9aa0a6" : "#D55E00";
      pen.beginPath(), pen.arc(x(a), y(b), 6, 0, 7), pen.fill();
      pen.fillStyle = ink, pen.fillText(name, Math.min(x(a) + 10, wide - right - pen.measureText(name).width), y(b) + 14);
    }
    canvas.ariaLabel = `${plane.y} over ${plane.x}. ${plane.points.map(([name, [a, b]]) => `${name} at ${a.toPrecision(3)}, ${b.toPrecision(3)}`).join("; ")}.`;
  }
}
