// A flame graph on a canvas: click or Enter zooms, typing in the search box marks, arrow keys walk from frame to frame.

import { colour, duration, h, percent, prepared, shortPath, shown } from "./dom.js";

/** @typedef {import("./profile.js").Tree} Tree */
/** @typedef {import("./profile.js").Timeline} Timeline */
/**
 * @typedef {object} Box
 * @property {Tree} node
 * @property {Box | null} parent
 * @property {number} depth
 * @property {number} x from 0 to 1
 * @property {number} width from 0 to 1
 * @property {Box[]} children
 */

const ROW = 19;
const MAX_DEPTH = 400;
const FONT = "12px system-ui, sans-serif";

/** @type {Record<string, [number, number, number]>} hue, saturation, lightness */
const PALETTE = { own: [22, 82, 66], library: [205, 42, 70], python: [48, 20, 74], thread: [210, 6, 78] };

export class FlameGraph {
  constructor() {
    this.canvas = /** @type {HTMLCanvasElement} */ (
      h("canvas", { tabindex: "0", role: "application", "aria-label": "Flame graph" })
    );
    this.tip = h("div", { class: "tip", hidden: true });
    this.status = h("div", { class: "sr", role: "status" });
    this.element = h("div", { class: "canvas flame" }, this.canvas, this.tip, this.status);
    /** @type {Timeline | null} */
    this.timeline = null;
    /** @type {Box | null} */
    this.root = null;
    /** @type {Box | null} */
    this.zoomed = null;
    /** @type {Box | null} */
    this.focused = null;
    /** @type {Box | null} */
    this.hovered = null;
    this.difference = false;
    this.search = "";
    this.onzoom = (/** @type {boolean} */ _zoomed) => {};
    this.canvas.addEventListener("mousemove", (event) => this.#hover(event));
    this.canvas.addEventListener("mouseleave", () => this.#leave());
    this.canvas.addEventListener("click", (event) => this.#zoom(this.#at(event)));
    this.canvas.addEventListener("keydown", (event) => this.#key(event));
    this.canvas.addEventListener("focus", () => this.draw());
    this.canvas.addEventListener("blur", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /**
   * @param {Timeline} timeline
   * @param {Tree} tree
   * @param {boolean} difference
   */
  show(timeline, tree, difference) {
    const path = this.#path(this.zoomed);
    this.timeline = timeline;
    this.difference = difference;
    this.root = layout(tree);
    this.zoomed = this.#follow(path);
    this.focused = this.hovered = null;
    this.tip.hidden = true;
    this.draw();
  }

  /** @param {string} text */
  mark(text) {
    this.search = text.toLowerCase();
    this.draw();
  }

  reset() {
    this.#zoom(this.root);
  }

  /** How much of the whole the search marks, from 0 to 1; a frame below a marked one counts with it. */
  marked() {
    if (!this.root || !this.search || !this.root.node.total) return 0;
    let sum = 0;
    const todo = [this.root];
    for (let box = todo.pop(); box; box = todo.pop()) {
      if (this.#matches(box)) sum += box.node.total;
      else todo.push(...box.children);
    }
    return sum / this.root.node.total;
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width || !this.root) return;
    const zoomed = this.zoomed ?? this.root;
    const boxes = this.#visible(zoomed, width);
    const rows = boxes.reduce((deepest, box) => Math.max(deepest, box.depth), 0) + 1;
    const pen = prepared(this.canvas, width, Math.max(rows, 3) * ROW + 2);
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    pen.font = FONT;
    pen.textBaseline = "middle";
    if (!this.root.node.total) {
      pen.fillStyle = colour("--soft");
      pen.fillText("Nothing ran in this slice.", 12, ROW * 1.5);
      return;
    }
    const space = pen.measureText("m").width * 0.86;
    for (const box of boxes) this.#paint(pen, box, zoomed, width, dark, space);
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Box} box
   * @param {Box} zoomed
   * @param {number} width
   * @param {boolean} dark
   * @param {number} space
   */
  #paint(pen, box, zoomed, width, dark, space) {
    const above = box.depth < zoomed.depth;
    const left = above ? 0 : ((box.x - zoomed.x) / zoomed.width) * width;
    const across = above ? width : (box.width / zoomed.width) * width;
    const top = box.depth * ROW;
    const matched = this.search !== "" && this.#matches(box);
    pen.globalAlpha = (this.search && !matched) || above ? 0.42 : 1;
    pen.fillStyle = matched ? (dark ? "#e879f9" : "#c026d3") : this.#fill(box, dark);
    pen.fillRect(left, top, Math.max(across - (across > 3 ? 1 : 0), 0.5), ROW - 1);
    pen.globalAlpha = 1;
    if (box === this.hovered || (box === this.focused && document.activeElement === this.canvas)) {
      pen.strokeStyle = colour("--ink");
      pen.lineWidth = 2;
      pen.strokeRect(left + 1, top + 1, Math.max(across - 3, 1), ROW - 3);
    }
    if (across < 30) return;
    const words = fit(this.label(box), Math.floor((across - 10) / space));
    pen.fillStyle = matched ? "#fff" : this.search || above ? colour("--ink") : "#211a14";
    pen.save();
    pen.beginPath();
    pen.rect(left, top, across - 4, ROW);
    pen.clip();
    pen.fillText(words, left + 5, top + ROW / 2);
    pen.restore();
  }

  /**
   * @param {Box} box
   * @param {boolean} dark
   */
  #fill(box, dark) {
    if (this.difference) {
      const root = /** @type {Box} */ (this.root).node;
      const whole = Math.max(root.total, root.left) || 1;
      const change = Math.max(-1, Math.min(1, ((box.node.total - box.node.left) / whole) * 1.6));
      const strength = Math.round(Math.abs(change) * 100);
      if (strength < 2) return dark ? "hsl(40 6% 62%)" : "hsl(40 8% 84%)";
      return change > 0 ? `hsl(8 ${40 + strength * 0.45}% ${80 - strength * 0.22}%)` : `hsl(212 ${30 + strength * 0.4}% ${80 - strength * 0.2}%)`;
    }
    const frame = box.node.frame >= 0 ? this.timeline?.frames[box.node.frame] : null;
    const [hue, saturation, light] = PALETTE[frame?.origin ?? "thread"] ?? [0, 0, 70];
    const seed = hash(frame ? frame.name + frame.file : "");
    return `hsl(${hue + (seed % 16) - 8} ${saturation}% ${light + ((seed >> 4) % 8) - 4 - (dark ? 4 : 0)}%)`;
  }

  /**
   * The boxes to draw: those above the zoomed one, and what lies below and is wide enough.
   * @param {Box} zoomed
   * @param {number} width
   */
  #visible(zoomed, width) {
    /** @type {Box[]} */
    const found = [];
    for (let box = zoomed.parent; box; box = box.parent) found.push(box);
    const least = (zoomed.width / width) * 0.4;
    const todo = [zoomed];
    for (let box = todo.pop(); box; box = todo.pop()) {
      found.push(box);
      for (const child of box.children) if (child.width >= least) todo.push(child);
    }
    return found;
  }

  /** @param {Box} box */
  label(box) {
    const number = box.node.frame;
    if (number === -1) return "all";
    if (number < -1) return shown(this.timeline?.threads[-2 - number] ?? "thread");
    const frame = this.timeline?.frames[number];
    return frame ? shown(frame.name) : "";
  }

  /** @param {Box} box */
  #words(box) {
    const root = /** @type {Box} */ (this.root).node;
    const frame = box.node.frame >= 0 ? this.timeline?.frames[box.node.frame] : null;
    const share = root.total ? box.node.total / root.total : 0;
    const first = `${duration(box.node.total)}, ${percent(share)}${box.node.self ? ` (itself ${duration(box.node.self)})` : ""}`;
    const second = this.difference ? `rest: ${duration(box.node.left)} in the same time` : "";
    return { name: this.label(box), place: frame?.file ?? "", first, second };
  }

  /** @param {MouseEvent} event */
  #at(event) {
    const bounds = this.canvas.getBoundingClientRect();
    const depth = Math.floor((event.clientY - bounds.top) / ROW);
    const across = (event.clientX - bounds.left) / bounds.width;
    const zoomed = this.zoomed ?? this.root;
    if (!zoomed) return null;
    if (depth < zoomed.depth) {
      let box = zoomed;
      while (box.depth > depth && box.parent) box = box.parent;
      return box;
    }
    const x = zoomed.x + across * zoomed.width;
    /** @type {Box | undefined} */
    let box = zoomed;
    while (box && box.depth < depth) box = box.children.find((child) => x >= child.x && x < child.x + child.width);
    return box ?? null;
  }

  /** @param {MouseEvent} event */
  #hover(event) {
    const box = this.#at(event);
    if (box !== this.hovered) {
      this.hovered = box;
      this.draw();
    }
    if (box) this.#tell(box, event.offsetX, event.offsetY);
    else this.tip.hidden = true;
  }

  #leave() {
    this.hovered = null;
    this.tip.hidden = true;
    this.draw();
  }

  /**
   * @param {Box} box
   * @param {number} x
   * @param {number} y
   */
  #tell(box, x, y) {
    const { name, place, first, second } = this.#words(box);
    this.tip.replaceChildren(
      h("div", {}, fit(name, 300)),
      place ? h("div", { class: "dim" }, fit(place, 300)) : "",
      h("div", {}, first),
      second ? h("div", {}, second) : "",
    );
    this.tip.hidden = false;
    const room = this.element.clientWidth - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(4, Math.min(x + 14, room))}px`;
    this.tip.style.top = `${y + 18}px`;
  }

  /** @param {Box | null} box */
  #zoom(box) {
    if (!box) return;
    this.zoomed = box === this.root ? null : box;
    this.focused = box;
    this.tip.hidden = true;
    this.onzoom(this.zoomed !== null);
    this.draw();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const box = this.focused ?? this.zoomed ?? this.root;
    if (!box) return;
    const siblings = box.parent?.children ?? [];
    const at = siblings.indexOf(box);
    /** @type {Record<string, () => Box | null | undefined>} */
    const moves = {
      ArrowDown: () => widest(box.children),
      ArrowUp: () => box.parent,
      ArrowLeft: () => siblings[at - 1],
      ArrowRight: () => siblings[at + 1],
    };
    const move = moves[event.key];
    if (move) {
      const next = move();
      if (next) this.#focus(next);
    } else if (event.key === "Enter" || event.key === " ") this.#zoom(box);
    else if (event.key === "Escape") this.reset();
    else return;
    event.preventDefault();
  }

  /** @param {Box} box */
  #focus(box) {
    this.focused = box;
    const zoomed = this.zoomed ?? this.root;
    if (zoomed && (box.depth < zoomed.depth || box.x < zoomed.x || box.x >= zoomed.x + zoomed.width)) this.zoomed = box;
    const { name, place, first, second } = this.#words(box);
    this.status.textContent = [name, shortPath(place), first, second].filter(Boolean).join(", ");
    this.draw();
    const bounds = /** @type {Box} */ (this.zoomed ?? this.root);
    const left = ((Math.max(box.x, bounds.x) - bounds.x) / bounds.width) * this.element.clientWidth;
    this.#tell(box, left, box.depth * ROW);
  }

  /** @param {Box} box */
  #matches(box) {
    const frame = box.node.frame >= 0 ? this.timeline?.frames[box.node.frame] : null;
    return `${this.label(box)} ${frame?.file ?? ""}`.toLowerCase().includes(this.search);
  }

  /** @param {Box | null} box */
  #path(box) {
    /** @type {string[]} */
    const found = [];
    for (let at = box; at?.parent; at = at.parent) found.unshift(this.label(at));
    return found;
  }

  /** @param {string[]} path */
  #follow(path) {
    let box = this.root;
    for (const name of path) {
      const next = box?.children.find((child) => this.label(child) === name);
      if (!next) break;
      box = next;
    }
    return box === this.root ? null : box;
  }
}

/**
 * Places of all nodes, the widest children first; in a difference a node has the width of the larger side.
 * @param {Tree} tree
 * @returns {Box}
 */
function layout(tree) {
  /** @type {Box} */
  const root = { node: tree, parent: null, depth: 0, x: 0, width: 1, children: [] };
  const todo = [root];
  for (let box = todo.pop(); box; box = todo.pop()) {
    if (box.depth >= MAX_DEPTH || !box.node.total) continue;
    let x = box.x;
    const children = box.node.children.filter((child) => child.total > 0).sort((a, b) => b.total - a.total);
    for (const child of children) {
      const width = (child.total / box.node.total) * box.width;
      /** @type {Box} */
      const placed = { node: child, parent: box, depth: box.depth + 1, x, width, children: [] };
      box.children.push(placed);
      todo.push(placed);
      x += width;
    }
  }
  return root;
}

/** @param {Box[]} boxes */
function widest(boxes) {
  return boxes.reduce((/** @type {Box | null} */ best, box) => (best && best.width >= box.width ? best : box), null);
}

/**
 * @param {string} text
 * @param {number} room in characters
 */
function fit(text, room) {
  return text.length <= room ? text : room < 3 ? "" : `${text.slice(0, room - 1)}…`;
}

/** @param {string} text */
function hash(text) {
  let value = 7;
  for (let at = 0; at < Math.min(text.length, 200); at++) value = (value * 31 + text.charCodeAt(at)) >>> 0;
  return value;
}
