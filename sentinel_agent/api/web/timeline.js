// The course of a metric with what the recorder saw below it; a slice is chosen by dragging, or with the arrow keys.

import { clock, colour, duration, h, prepared, reading } from "./dom.js";
import { activity } from "./profile.js";

/** @typedef {{unit: string, times: number[], values: number[]}} Series */
/** @typedef {import("./profile.js").Timeline} Timeline */

const HEIGHT = 190;
const STRIP = 34;
const TOP = 14;
const AXIS = 22;
const LEFT = 62;
const RIGHT = 12;
const LEAST = 0.05;

export class TimelineChart {
  /** @param {(slice: [number, number]) => void} onslice */
  constructor(onslice) {
    this.canvas = /** @type {HTMLCanvasElement} */ (
      h("canvas", {
        tabindex: "0",
        role: "slider",
        "aria-label": "Slice of time. Arrow keys move it, with Shift they change its length.",
        "aria-valuemin": "0",
        "aria-valuemax": "100",
        "aria-valuenow": "0",
      })
    );
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "canvas timeline" }, this.canvas, this.tip);
    this.onslice = onslice;
    /** @type {Series | null} */
    this.series = null;
    /** @type {Timeline | null} */
    this.timeline = null;
    /** @type {number[]} */
    this.marks = [];
    /** @type {[number, number]} */
    this.range = [0, 1];
    /** @type {[number, number]} */
    this.slice = [0, 1];
    /** @type {number | null} */
    this.from = null;
    this.waiting = false;
    this.canvas.addEventListener("pointerdown", (event) => this.#down(event));
    this.canvas.addEventListener("pointermove", (event) => this.#move(event));
    this.canvas.addEventListener("pointerup", (event) => this.#up(event));
    this.canvas.addEventListener("pointercancel", () => (this.from = null));
    this.canvas.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.canvas.addEventListener("dblclick", () => this.choose(this.range));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** @param {[number, number]} slice */
  choose(slice) {
    const [low, high] = this.range;
    const from = Math.max(low, Math.min(slice[0], high - LEAST));
    this.slice = [from, Math.min(high, Math.max(slice[1], from + LEAST))];
    this.canvas.setAttribute("aria-valuenow", String(Math.round(((from - low) / (high - low)) * 100)));
    this.canvas.setAttribute("aria-valuetext", `${clock(this.slice[0])}, ${duration(this.slice[1] - this.slice[0])}`);
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
      this.onslice(this.slice);
    });
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width) return;
    const pen = prepared(this.canvas, width, HEIGHT);
    pen.font = "11px system-ui, sans-serif";
    const bottom = HEIGHT - AXIS - (this.timeline ? STRIP : 0);
    this.#axis(pen, width, bottom);
    if (this.series) this.#course(pen, width, bottom, this.series);
    if (this.timeline) this.#strip(pen, width, this.timeline);
    this.#marks(pen, width);
    this.#slice(pen, width);
  }

  /** @param {number} time @param {number} width */
  #x(time, width) {
    return LEFT + ((time - this.range[0]) / (this.range[1] - this.range[0])) * (width - LEFT - RIGHT);
  }

  /** @param {PointerEvent} event */
  #time(event) {
    const bounds = this.canvas.getBoundingClientRect();
    const part = (event.clientX - bounds.left - LEFT) / (bounds.width - LEFT - RIGHT);
    return this.range[0] + Math.max(0, Math.min(1, part)) * (this.range[1] - this.range[0]);
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {number} width
   * @param {number} bottom
   */
  #axis(pen, width, bottom) {
    pen.strokeStyle = colour("--line");
    pen.fillStyle = colour("--faint");
    pen.lineWidth = 1;
    const span = this.range[1] - this.range[0];
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600].find((each) => span / each <= width / 90) ?? 900;
    pen.textAlign = "center";
    for (let time = Math.ceil(this.range[0] / step) * step; time <= this.range[1]; time += step) {
      const x = Math.round(this.#x(time, width)) + 0.5;
      pen.beginPath();
      pen.moveTo(x, TOP);
      pen.lineTo(x, HEIGHT - AXIS);
      pen.stroke();
      const words = step < 1 ? `${clock(time)}.${Math.floor((time % 1) * 10)}` : clock(time);
      if (x > LEFT + 20 && x < width - 24) pen.fillText(words, x, HEIGHT - 7);
    }
    pen.beginPath();
    pen.moveTo(LEFT, bottom + 0.5);
    pen.lineTo(width - RIGHT, bottom + 0.5);
    pen.stroke();
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {number} width
   * @param {number} bottom
   * @param {Series} series
   */
  #course(pen, width, bottom, series) {
    const seen = series.values.filter((_, at) => inside(series.times[at] ?? 0, this.range));
    const high = Math.max(...seen, 0);
    const low = series.unit === "bytes" ? Math.min(...seen, high) : 0;
    const top = high + (high - low) * 0.08 || 1;
    const base = low - (low ? (high - low) * 0.08 : 0);
    /** @param {number} value */
    const y = (value) => bottom - ((value - base) / (top - base)) * (bottom - TOP);
    pen.textAlign = "right";
    pen.fillStyle = colour("--faint");
    pen.fillText(reading(high, series.unit), LEFT - 7, y(high) + 4);
    pen.fillText(reading(low || 0, series.unit), LEFT - 7, Math.max(y(low) - 1, y(high) + 16));
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, width - LEFT - RIGHT, HEIGHT);
    pen.clip();
    pen.beginPath();
    let before = null;
    for (const [at, time] of series.times.entries()) {
      const x = this.#x(time, width);
      const value = y(series.values[at] ?? 0);
      if (before === null) pen.moveTo(x, value);
      else pen.lineTo(x, value);
      before = x;
    }
    pen.strokeStyle = colour("--chart");
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    pen.stroke();
    if (before !== null) {
      pen.lineTo(before, bottom);
      pen.lineTo(this.#x(series.times[0] ?? 0, width), bottom);
      pen.fillStyle = colour("--chart-fill");
      pen.fill();
    }
    pen.restore();
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {number} width
   * @param {Timeline} timeline
   */
  #strip(pen, width, timeline) {
    const bins = Math.max(10, Math.floor((width - LEFT - RIGHT) / 3));
    const found = activity(timeline, "cpu", this.range[0], this.range[1], bins);
    const top = Math.max(1, ...found);
    const bottom = HEIGHT - AXIS;
    pen.fillStyle = colour("--cpu");
    const across = (width - LEFT - RIGHT) / bins;
    for (const [bin, value] of found.entries()) {
      const tall = (value / top) * (STRIP - 6);
      if (tall > 0.2) pen.fillRect(LEFT + bin * across, bottom - tall, Math.max(across - 0.6, 1), tall);
    }
    pen.fillStyle = colour("--faint");
    pen.textAlign = "right";
    pen.fillText("on CPU", LEFT - 7, bottom - STRIP / 2 + 5);
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} width */
  #marks(pen, width) {
    pen.strokeStyle = colour("--mark");
    pen.fillStyle = colour("--mark");
    pen.lineWidth = 1.5;
    for (const time of this.marks.filter((each) => inside(each, this.range))) {
      const x = this.#x(time, width);
      pen.setLineDash([5, 3]);
      pen.beginPath();
      pen.moveTo(x, 2);
      pen.lineTo(x, HEIGHT - AXIS);
      pen.stroke();
      pen.setLineDash([]);
      const right = x < width - 70;
      pen.textAlign = right ? "left" : "right";
      pen.fillText("trigger", x + (right ? 5 : -5), 11);
    }
  }

  /** @param {CanvasRenderingContext2D} pen @param {number} width */
  #slice(pen, width) {
    const [from, to] = [this.#x(this.slice[0], width), this.#x(this.slice[1], width)];
    if (this.slice[0] <= this.range[0] && this.slice[1] >= this.range[1]) return;
    pen.fillStyle = colour("--slice");
    pen.fillRect(from, TOP - 2, Math.max(to - from, 1), HEIGHT - AXIS - TOP + 2);
    pen.strokeStyle = colour("--mark");
    pen.lineWidth = 1;
    pen.strokeRect(from + 0.5, TOP - 1.5, Math.max(to - from - 1, 1), HEIGHT - AXIS - TOP + 1);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button !== 0) return;
    this.from = this.#time(event);
    this.canvas.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const now = this.#time(event);
    if (this.from !== null) this.choose([Math.min(this.from, now), Math.max(this.from, now)]);
    const near = this.series ? nearest(this.series, now) : null;
    const value = near !== null && this.series ? reading(this.series.values[near], this.series.unit) : "";
    this.tip.replaceChildren(h("div", {}, clock(now), value ? `  ${value}` : ""));
    this.tip.hidden = false;
    const room = this.element.clientWidth - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(4, Math.min(event.offsetX + 12, room))}px`;
    this.tip.style.top = `${TOP + 4}px`;
  }

  /** @param {PointerEvent} event */
  #up(event) {
    if (this.from === null) return;
    const now = this.#time(event);
    const far = Math.abs(now - this.from) > (this.range[1] - this.range[0]) / 200;
    if (far) this.choose([Math.min(this.from, now), Math.max(this.from, now)]);
    else this.choose([now - (this.range[1] - this.range[0]) / 100, now + (this.range[1] - this.range[0]) / 100]);
    this.from = null;
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = (this.range[1] - this.range[0]) / 50;
    const sign = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const [from, to] = this.slice;
    if (sign && event.shiftKey) this.choose([from, to + sign * step]);
    else if (sign) {
      const length = Math.min(to - from, this.range[1] - this.range[0]);
      const start = Math.max(this.range[0], Math.min(from + sign * step, this.range[1] - length));
      this.choose([start, start + length]);
    } else if (event.key === "Escape" || event.key === "Home") this.choose(this.range);
    else return;
    event.preventDefault();
  }
}

/** @param {number} time @param {[number, number]} range */
function inside(time, range) {
  return time >= range[0] && time <= range[1];
}

/** @param {Series} series @param {number} time */
function nearest(series, time) {
  let best = null;
  for (const [at, each] of series.times.entries())
    if (best === null || Math.abs(each - time) < Math.abs((series.times[best] ?? 0) - time)) best = at;
  return best;
}
