// The list of incidents, with filters that the address remembers.

import { get } from "./api.js";
import { ago, date, h, reading } from "./dom.js";

/** @typedef {{id: string, rule: string, target: string, time: number, value: number | null, reason: string, pid: number, unit: string, summary: string, bytes: number}} Row */

const PAGE = 200;
const PERIODS = { "": "Any time", 900: "Last 15 minutes", 3600: "Last hour", 86400: "Last day", 604800: "Last week" };

/**
 * @param {HTMLElement} main
 * @param {URLSearchParams} query
 * @param {(work: () => Promise<void>, seconds: number) => void} repeat
 * @param {AbortSignal} signal
 */
export async function incidentsPage(main, query, repeat, signal) {
  const text = /** @type {HTMLInputElement} */ (
    h("input", { type: "search", placeholder: "Search", "aria-label": "Search", value: query.get("q") ?? "", oninput: () => draw() })
  );
  const rule = select("Rule");
  const target = select("Target");
  const period = select("Time");
  period.replaceChildren(...Object.entries(PERIODS).sort((a, b) => Number(a[0]) - Number(b[0])).map(([value, words]) => h("option", { value }, words)));
  period.value = query.get("period") ?? "";
  const count = h("p", { class: "lead", role: "status" });
  const place = h("section", { class: "card", "aria-label": "Incidents" });
  main.replaceChildren(
    h("div", { class: "head" }, h("div", {}, h("h1", {}, "Incidents"), count), h("div", { class: "filters", role: "search" }, text, rule, target, period)),
    place,
  );
  /** @type {Row[]} */
  let rows = [];
  let most = PAGE;
  let shape = "";
  for (const each of [rule, target, period]) each.addEventListener("change", () => draw());
  await load();
  rule.value = query.get("rule") ?? "";
  target.value = query.get("target") ?? "";
  draw();
  repeat(async () => {
    await load();
    draw();
  }, 3);

  async function load() {
    rows = await get("incidents?limit=10000", signal);
    fill(rule, "All rules", rows.map((row) => row.rule));
    fill(target, "All targets", rows.map((row) => row.target));
  }

  function draw() {
    remember({ q: text.value, rule: rule.value, target: target.value, period: period.value });
    const words = text.value.toLowerCase();
    const since = period.value ? Date.now() / 1000 - Number(period.value) : 0;
    const found = rows.filter(
      (row) =>
        (!rule.value || row.rule === rule.value) &&
        (!target.value || row.target === target.value) &&
        row.time >= since &&
        (!words || `${row.id} ${row.rule} ${row.target} ${row.pid} ${row.summary}`.toLowerCase().includes(words)),
    );
    count.textContent = rows.length === found.length ? `${rows.length} saved, newest first` : `${found.length} of ${rows.length} saved`;
    const now = `${found[0]?.id} ${found.length} ${rows.length} ${most} ${Math.floor(Date.now() / 15000)}`;
    if (now === shape) return;
    shape = now;
    if (!found.length) {
      place.replaceChildren(nothing(rows.length > 0));
      return;
    }
    place.replaceChildren(table(found.slice(0, most)));
    if (found.length > most)
      place.append(h("p", { class: "empty" }, h("button", { type: "button", onclick: () => { most += PAGE; draw(); } }, `Show more of ${found.length}`)));
  }
}

/** @param {Row[]} rows */
function table(rows) {
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "list" },
      h("thead", {}, h("tr", {}, h("th", {}, "When"), h("th", {}, "Rule"), h("th", {}, "Target"), h("th", { class: "right" }, "Value"), h("th", {}, "Why"))),
      h(
        "tbody",
        {},
        rows.map((row) => {
          const link = `#/incidents/${row.id}`;
          return h(
            "tr",
            {
              class: "link",
              onclick: (/** @type {MouseEvent} */ event) => {
                if (!(event.target instanceof HTMLAnchorElement) && !String(getSelection())) location.hash = link;
              },
            },
            h("td", { class: "nowrap" }, h("a", { href: link }, date(row.time)), h("div", { class: "faint" }, ago(row.time))),
            h("td", {}, h("span", { class: "tag hot", title: row.rule }, row.rule)),
            h("td", {}, row.target, h("div", { class: "faint" }, `pid ${row.pid}`)),
            h("td", { class: "right" }, reading(row.value, row.unit)),
            h("td", {}, row.summary),
          );
        }),
      ),
    ),
  );
}

/** @param {boolean} filtered */
function nothing(filtered) {
  return filtered
    ? h("p", { class: "empty" }, h("b", {}, "Nothing passes the filters"), "Widen them to see the others.")
    : h("p", { class: "empty" }, h("b", {}, "No incidents yet"), "When a rule fires, its incident appears here by itself. ", h("a", { href: "#/rules" }, "Why is no rule firing?"));
}

/** @param {string} label */
function select(label) {
  return /** @type {HTMLSelectElement} */ (h("select", { "aria-label": label }));
}

/**
 * @param {HTMLSelectElement} element
 * @param {string} all
 * @param {string[]} values
 */
function fill(element, all, values) {
  const names = [...new Set(values)].sort().slice(0, 500);
  const shape = names.join("\n");
  if (element.dataset.shape === shape) return;
  element.dataset.shape = shape;
  const chosen = element.value;
  element.replaceChildren(h("option", { value: "" }, all), ...names.map((name) => h("option", { value: name }, name)));
  element.value = chosen;
}

/** @param {Record<string, string>} values */
function remember(values) {
  const kept = new URLSearchParams(Object.entries(values).filter(([, value]) => value));
  const hash = kept.size ? `#/?${kept}` : "#/";
  if (location.hash !== hash && (location.hash.startsWith("#/?") || location.hash === "#/" || !location.hash)) history.replaceState(null, "", hash);
}
