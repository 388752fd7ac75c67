// Elements and words. Text only ever becomes text: names come from the watched process and may be anything.

/** @typedef {string | number | Node | null | undefined | false} Child */

/**
 * An element. `props`: `class`, `on<event>`, or attributes; `true` is an attribute without a value.
 * @param {string} tag
 * @param {Record<string, any>} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(shown(String(child))));
  }
  return element;
}

const UNSAFE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu;
const LONGEST = 600;

/**
 * Text without characters that have no glyph or turn the direction of writing; a long one is cut.
 * @param {string} text
 * @returns {string}
 */
export function shown(text) {
  const cut = text.length > LONGEST ? `${text.slice(0, LONGEST)}…` : text;
  return cut.replace(UNSAFE, (char) => (char === "\n" || char === "\t" ? char : "\ufffd"));
}

/** @param {number} count @param {number} [digits] */
export function figure(count, digits = 0) {
  return count.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: 0 });
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  let value = Math.abs(bytes);
  while (value >= 1024 && at < units.length - 1) {
    value /= 1024;
    at += 1;
  }
  return `${bytes < 0 ? "-" : ""}${figure(value, value < 10 && at ? 1 : 0)} ${units[at]}`;
}

/** @param {number} seconds */
export function duration(seconds) {
  const value = Math.abs(seconds);
  if (value < 0.001) return `${figure(value * 1e6)} µs`;
  if (value < 1) return `${figure(value * 1000, value < 0.01 ? 1 : 0)} ms`;
  if (value < 60) return `${figure(value, 1)} s`;
  if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  if (value < 86400) return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
  return `${Math.floor(value / 86400)} d ${Math.round((value % 86400) / 3600)} h`;
}

/**
 * A reading as a person reads it.
 * @param {number | null | undefined} value
 * @param {string} unit
 */
export function reading(value, unit) {
  if (value === null || value === undefined) return "–";
  switch (unit) {
    case "percent":
      return `${figure(value, value < 10 ? 1 : 0)} %`;
    case "bytes":
      return size(value);
    case "bytes_per_second":
      return `${size(value)}/s`;
    case "seconds":
      return duration(value);
    case "per_second":
      return `${figure(value, 1)}/s`;
    default:
      return figure(value, 2);
  }
}

/** @param {number} part */
export function percent(part) {
  const value = part * 100;
  return `${figure(value, value !== 0 && Math.abs(value) < 10 ? 1 : 0)} %`;
}

/** @param {number} seconds since the epoch */
export function clock(seconds) {
  const moment = new Date(seconds * 1000);
  return Number.isNaN(moment.getTime()) ? String(seconds) : moment.toLocaleTimeString("en-GB");
}

/** @param {number} seconds since the epoch */
export function date(seconds) {
  const moment = new Date(seconds * 1000);
  if (Number.isNaN(moment.getTime())) return String(seconds);
  return `${moment.toLocaleDateString("sv-SE")} ${moment.toLocaleTimeString("en-GB")}`;
}

/** @param {number} seconds since the epoch */
export function ago(seconds) {
  const past = Date.now() / 1000 - seconds;
  if (past < 5) return "just now";
  if (past < 60) return `${Math.round(past)} s ago`;
  if (past < 3600) return `${Math.round(past / 60)} min ago`;
  if (past < 86400) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} d ago`;
}

/** @param {string} path */
export function shortPath(path) {
  return path.split("/").slice(-2).join("/");
}

/** @param {string} name of a CSS variable */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * Prepare a canvas for drawing in CSS pixels.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width
 * @param {number} height
 * @returns {CanvasRenderingContext2D}
 */
export function prepared(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

/**
 * A row of buttons of which one is pressed.
 * @template {string} T
 * @param {string} label
 * @param {[T, string][]} choices
 * @param {T} chosen
 * @param {(choice: T) => void} choose
 * @param {string} [kind]
 */
export function choice(label, choices, chosen, choose, kind = "group") {
  const buttons = choices.map(([value, words]) =>
    h(
      "button",
      {
        type: "button",
        "aria-pressed": String(value === chosen),
        onclick: () => {
          for (const [at, button] of buttons.entries())
            button.setAttribute("aria-pressed", String(choices[at]?.[0] === value));
          choose(value);
        },
      },
      words,
    ),
  );
  return h("div", { class: kind, role: "group", "aria-label": label }, buttons);
}
