// The timeline with its flame graph: what the incident page and the live page have in common.

import { choice, duration, h, percent, shortPath } from "./dom.js";
import { FlameGraph } from "./flame.js";
import { hottest, treeOf } from "./profile.js";
import { TimelineChart } from "./timeline.js";

/** @typedef {import("./profile.js").Timeline} Timeline */
/** @typedef {import("./profile.js").View} View */
/** @typedef {import("./timeline.js").Series} Series */
/** @typedef {{start: number, end: number, metrics: Record<string, Series>}} SeriesWindow */

const HOT = 12;

export class StackExplorer {
  constructor() {
    this.chart = new TimelineChart(() => this.refresh());
    this.flame = new FlameGraph();
    /** @type {Timeline | null} */
    this.timeline = null;
    /** @type {SeriesWindow | null} */
    this.window = null;
    /** @type {View} */
    this.view = "cpu";
    this.difference = false;
    /** @type {number | null} */
    this.thread = null;
    this.metric = "cpu";
    this.sliceWords = h("span", { class: "note", role: "status" });
    this.found = h("span", { class: "note" });
    this.table = h("tbody");
    this.otherHead = h("th", { class: "right" }, "Rest");
    this.threads = /** @type {HTMLSelectElement} */ (
      h("select", { "aria-label": "Thread", onchange: () => this.#chooseThread() })
    );
    this.back = h("button", { type: "button", disabled: true, onclick: () => this.flame.reset() }, "Zoom out");
    this.flame.onzoom = (zoomed) => this.back.toggleAttribute("disabled", !zoomed);
    this.chips = h("div");
    this.slices = h("div", { class: "end" });
    this.legend = h("div", { class: "legend" });
    this.timelineCard = h(
      "section",
      { class: "card", "aria-label": "Timeline" },
      h("header", {}, h("h2", {}, "Timeline"), this.sliceWords, this.slices),
      this.chips,
      h("div", { class: "body" }, this.chart.element),
    );
    this.flameCard = h(
      "section",
      { class: "card", "aria-label": "Flame graph" },
      h("header", {}, h("h2", {}, "What ran"), this.#views(), this.found, this.#tools()),
      h("div", { class: "body" }, this.flame.element),
      this.legend,
    );
    this.hotCard = h(
      "section",
      { class: "card", "aria-label": "Hottest functions" },
      h("header", {}, h("h2", {}, "Hottest functions"), h("span", { class: "note" }, "of the slice, by their own time")),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          {},
          h("thead", {}, h("tr", {}, h("th", {}, "Function"), h("th", { class: "right" }, "Itself"), h("th", { class: "right" }, "With callees"), this.otherHead)),
          this.table,
        ),
      ),
    );
    this.#legend();
  }

  #views() {
    return choice(
      "View",
      /** @type {[string, string][]} */ ([
        ["cpu", "On CPU"],
        ["wall", "All threads"],
        ["difference", "Difference"],
      ]),
      "cpu",
      (chosen) => {
        this.difference = chosen === "difference";
        this.view = chosen === "wall" ? "wall" : "cpu";
        this.#legend();
        this.refresh();
      },
    );
  }

  #tools() {
    const search = /** @type {HTMLInputElement} */ (
      h("input", {
        type: "search",
        placeholder: "Search function or file",
        "aria-label": "Search function or file",
        oninput: () => {
          this.flame.mark(search.value);
          this.#tellFound();
        },
      })
    );
    return h("div", { class: "end" }, search, this.threads, this.back);
  }

  #legend() {
    /** @type {[string, string][]} */
    const words = this.difference
      ? [["hsl(8 80% 62%)", "more than in the rest"], ["hsl(212 65% 64%)", "less"], ["hsl(40 8% 78%)", "the same"]]
      : [["hsl(22 82% 66%)", "your code"], ["hsl(205 42% 70%)", "installed packages"], ["hsl(48 20% 74%)", "Python itself"]];
    this.legend.replaceChildren(
      ...words.map(([fill, text]) => {
        const swatch = h("i");
        swatch.style.background = fill;
        return h("span", {}, swatch, text);
      }),
    );
  }

  #chooseThread() {
    this.thread = this.threads.value === "" ? null : Number(this.threads.value);
    this.refresh();
  }

  #tellFound() {
    this.found.textContent = this.flame.search ? `${percent(this.flame.marked())} found` : "";
  }

  /**
   * @param {Timeline | null} timeline
   * @param {SeriesWindow | null} window
   * @param {number[]} marks
   * @param {string} metric
   */
  load(timeline, window, marks, metric) {
    const first = this.timeline === null && this.window === null;
    this.timeline = timeline;
    this.window = window;
    this.chart.timeline = timeline;
    this.chart.marks = marks;
    if (first) this.metric = metric;
    this.#chips();
    this.#threadChoices();
    const before = this.chart.range;
    const whole = !first && this.chart.slice[0] === before[0] && this.chart.slice[1] === before[1];
    this.chart.range = rangeOf(timeline, window);
    this.#sliceButtons();
    if (first || whole) this.chart.choose(this.chart.range);
    else this.chart.choose(this.chart.slice);
  }

  #chips() {
    const window = this.window;
    if (!window) return;
    const names = Object.keys(window.metrics).filter((name) => window.metrics[name]?.values.length);
    const order = [...new Set([this.metric, "cpu", "rss", "tasks", "threads", "fds", ...names])].filter((name) => names.includes(name));
    if (!order.includes(this.metric) && order[0]) this.metric = order[0];
    this.chart.series = window.metrics[this.metric] ?? null;
    const shape = order.join(" ");
    if (this.chips.dataset.shape === shape) return;
    this.chips.dataset.shape = shape;
    this.chips.replaceChildren(
      choice(
        "Metric",
        order.map((name) => /** @type {[string, string]} */ ([name, name])),
        this.metric,
        (name) => {
          this.metric = name;
          this.chart.series = this.window?.metrics[name] ?? null;
          this.chart.draw();
        },
        "chips",
      ),
    );
  }

  #threadChoices() {
    const names = this.timeline?.threads ?? [];
    const shape = names.join("\n");
    if (this.threads.dataset.shape === shape) return;
    this.threads.dataset.shape = shape;
    this.threads.replaceChildren(
      h("option", { value: "" }, `All ${names.length} threads`),
      ...names.map((name, at) => h("option", { value: String(at) }, name)),
    );
    this.threads.hidden = names.length < 2;
    this.thread = null;
  }

  #sliceButtons() {
    const since = this.timeline?.since;
    const [low, high] = this.chart.range;
    /** @type {[string, [number, number]][]} */
    const slices = [["All", [low, high]]];
    if (since && since > low && since < high) slices.push(["Before", [low, since]], ["During", [since, high]]);
    this.slices.replaceChildren(
      ...slices.map(([words, slice]) => h("button", { type: "button", onclick: () => this.chart.choose(slice) }, words)),
    );
  }

  /** Draw the flame graph of the slice that is chosen now. */
  refresh() {
    const [from, to] = this.chart.slice;
    const [low, high] = this.chart.range;
    const all = from <= low && to >= high;
    const length = duration(to - from);
    const hint = this.timeline ? "; drag over the chart to choose a slice" : "";
    this.sliceWords.textContent = all ? `all ${length}${hint}` : `slice of ${length}; double-click for all`;
    const timeline = this.timeline;
    if (!timeline) return;
    /** @type {[number, number][]} */
    let rest = [[low, from], [to, high]];
    /** @type {[number, number]} */
    let slice = [from, to];
    if (this.difference && all && timeline.since) {
      slice = [timeline.since, high];
      rest = [[low, timeline.since]];
    }
    const tree = treeOf(timeline, this.view, slice, this.thread, this.difference ? rest : []);
    this.flame.show(timeline, tree, this.difference);
    this.#tellFound();
    this.#hot(timeline, tree);
  }

  /**
   * @param {Timeline} timeline
   * @param {import("./profile.js").Tree} tree
   */
  #hot(timeline, tree) {
    this.otherHead.hidden = !this.difference;
    const whole = tree.total || 1;
    const rows = hottest(tree).filter((hot) => hot.self > 0).slice(0, HOT);
    this.table.replaceChildren(
      ...rows.map((hot) => {
        const frame = timeline.frames[hot.frame];
        const fill = h("span");
        fill.style.width = `${(hot.self / whole) * 100}%`;
        return h(
          "tr",
          {},
          h("td", {}, h("span", { class: "mono" }, frame?.name ?? ""), " ", h("span", { class: "faint", title: frame?.file ?? "" }, shortPath(frame?.file ?? "")), h("span", { class: "bar", "aria-hidden": "true" }, fill)),
          h("td", { class: "right" }, percent(hot.self / whole), h("div", { class: "faint" }, duration(hot.self))),
          h("td", { class: "right" }, percent(hot.total / whole)),
          this.difference && h("td", { class: "right" }, tree.left ? percent(hot.left / tree.left) : "–"),
        );
      }),
    );
    if (!rows.length) this.table.append(h("tr", {}, h("td", { colspan: "4", class: "soft" }, "Nothing was on a CPU in this slice.")));
  }
}

/**
 * @param {Timeline | null} timeline
 * @param {SeriesWindow | null} window
 * @returns {[number, number]}
 */
function rangeOf(timeline, window) {
  const times = Object.values(window?.metrics ?? {}).flatMap((series) => [series.times[0], series.times.at(-1)]);
  const runs = timeline?.runs ?? [];
  const stacks = runs.length ? [Math.min(...runs.slice(0, 2000).map((run) => run.start)), timeline?.end] : [];
  const known = [...times, ...stacks].filter((time) => time !== undefined);
  if (!known.length) return [0, 1];
  const [low, high] = [Math.min(...known), Math.max(...known)];
  return [low, Math.max(high, low + 1)];
}
