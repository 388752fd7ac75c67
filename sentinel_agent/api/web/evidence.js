// The cards of an incident's files beside the timeline: tasks, threads, objects, allocations, requests.

import { choice, date, duration, figure, h, percent, shortPath, size } from "./dom.js";

const LISTED = 100;
const ROWS = 30;
const DEEPEST = 40;
const DRAWN = 500;

/** @param {any[]} frames */
export function frameList(frames) {
  return h(
    "ol",
    { class: "stack" },
    frames.map((frame) => h("li", {}, frame.function, " ", h("span", { class: "soft", title: frame.file }, `${shortPath(frame.file)}:${frame.line}`))),
  );
}

/**
 * A card with a table; the first column is words, the others are figures.
 * @param {string} title
 * @param {string} note
 * @param {string[]} columns
 * @param {(string | Node | (string | Node)[])[][]} rows
 */
function table(title, note, columns, rows) {
  return h(
    "section",
    { class: "card", "aria-label": title },
    h("header", {}, h("h2", {}, title), h("span", { class: "note" }, note)),
    h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h("thead", {}, h("tr", {}, columns.map((words, at) => h("th", { class: at ? "right" : "" }, words)))),
        h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, at) => h("td", { class: at ? "right" : "" }, cell))))),
      ),
    ),
  );
}

/** @param {any} tasks the document of tasks.json */
export function taskCard(tasks) {
  const body = h("div");
  const forest = taskForest(tasks.tasks ?? []);
  const tree = forest.some((place) => place.children.length);
  /** @param {"groups" | "tree"} view */
  const show = (view) => body.replaceChildren(...(view === "groups" ? taskGroups(tasks) : taskTree(tasks, forest)));
  show("groups");
  return h(
    "section",
    { class: "card", "aria-label": "Tasks" },
    h(
      "header",
      {},
      h("h2", {}, "Tasks"),
      tree ? choice("Tasks", [["groups", "By await chain"], ["tree", "Who awaits whom"]], "groups", show) : "",
      h("span", { class: "note" }, `${figure(tasks.count)}, grouped by await chain`, compared(tasks)),
    ),
    body,
  );
}

/** @param {any} tasks */
function compared(tasks) {
  const before = tasks.compared_with;
  return before ? `; ${figure(before.count)} at ${date(before.time)}` : "";
}

/**
 * What the target says that the tasks are for, the most frequent values of each label: ` for route=/pay, /cart; trace_id=4bf92f35`.
 * @param {any} group
 */
function purpose(group) {
  const labels = Object.entries(group.context ?? {}).map(([name, values]) => `${name}=${Object.keys(values).join(", ")}`);
  return labels.length ? ` for ${labels.join("; ")}` : "";
}

/** @param {any} tasks */
function taskGroups(tasks) {
  const most = Math.max(1, ...tasks.groups.map((/** @type {any} */ group) => group.count));
  return tasks.groups.slice(0, LISTED).map((/** @type {any} */ group, /** @type {number} */ at) => {
    const fill = h("span");
    fill.style.width = `${(group.count / most) * 100}%`;
    return h(
      "details",
      { open: at === 0 },
      h(
        "summary",
        {},
        h("b", {}, figure(group.count)),
        " ",
        h("span", { class: "mono" }, group.coroutine),
        group.waiting_on ? h("span", { class: "soft" }, ` waiting on ${group.waiting_on}`) : "",
        h("span", { class: "soft" }, purpose(group)),
        group.was !== undefined && group.was !== null ? h("span", { class: "faint" }, ` ${figure(group.was)} before`) : "",
        h("span", { class: "bar", "aria-hidden": "true" }, fill),
      ),
      frameList(group.frames),
    );
  });
}

/** @typedef {{task: any, children: Place[]}} Place */

/**
 * Who awaits whom: tasks that nobody is known to await are at the top. A circle is cut where it closes.
 * @param {any[]} tasks
 * @returns {Place[]}
 */
export function taskForest(tasks) {
  /** @type {Map<number, Place>} */
  const places = new Map();
  for (const task of tasks) if (task.id) places.set(task.id, { task, children: [] });
  /** @type {Map<number, number>} */
  const above = new Map();
  for (const { task } of places.values()) {
    const parent = (task.awaited_by ?? []).find((/** @type {number} */ id) => places.has(id) && !leadsTo(above, id, task.id));
    if (parent !== undefined) above.set(task.id, parent);
  }
  /** @type {Place[]} */
  const roots = [];
  for (const place of places.values()) {
    const parent = places.get(above.get(place.task.id) ?? -1);
    (parent ? parent.children : roots).push(place);
  }
  return roots;
}

/**
 * @param {Map<number, number>} above
 * @param {number} from
 * @param {number} to
 */
function leadsTo(above, from, to) {
  for (let at = /** @type {number | undefined} */ (from); at !== undefined; at = above.get(at)) if (at === to) return true;
  return false;
}

/**
 * @param {any} tasks
 * @param {Place[]} forest
 */
function taskTree(tasks, forest) {
  let room = DRAWN;
  /**
   * @param {Place[]} places
   * @param {number} depth
   * @returns {HTMLElement[]}
   */
  const list = (places, depth) => {
    /** @type {Map<string, Place[]>} */
    const alike = new Map();
    for (const place of places) {
      const last = place.task.frames.at(-1);
      const key = place.children.length ? `#${place.task.id}` : JSON.stringify([place.task.coroutine, place.task.state, last?.file, last?.line]);
      alike.set(key, [...(alike.get(key) ?? []), place]);
    }
    const order = [...alike.values()].sort((a, b) => weight(b) - weight(a));
    /** @type {HTMLElement[]} */
    const found = [];
    for (const group of order) {
      if (room-- <= 0) break;
      const [first] = group;
      if (first) found.push(branch(first, group.length, depth));
    }
    return found;
  };
  /** @param {Place} place @param {number} count @param {number} depth */
  const branch = (place, count, depth) => {
    const { task, children } = place;
    const last = task.frames.at(-1);
    return h(
      "details",
      { open: depth < 2 },
      h(
        "summary",
        {},
        count > 1 ? h("b", {}, `${figure(count)} × `) : "",
        h("span", { class: "mono" }, task.coroutine),
        " ",
        h("span", { class: "faint" }, count > 1 ? "" : task.name),
        " ",
        h("span", { class: "soft" }, task.waiting_on ? `waiting on ${task.waiting_on}` : task.state),
        last ? h("span", { class: "faint mono" }, ` ${shortPath(last.file)}:${last.line}`) : "",
      ),
      h("div", { class: "branch" }, depth < DEEPEST ? list(children, depth + 1) : "", children.length ? "" : frameList(task.frames)),
    );
  };
  const drawn = list(forest, 0);
  const left = tasks.count > (tasks.tasks ?? []).length ? `${figure(tasks.tasks.length)} of ${figure(tasks.count)} tasks are listed one by one. ` : "";
  const cut = room < 0 ? `${figure(DRAWN)} lines are shown, the rest is in tasks.json.` : "";
  return [h("div", { class: "branch first" }, drawn), ...(left || cut ? [h("p", { class: "faint body" }, left, cut)] : [])];
}

/** @param {Place[]} group */
function weight(group) {
  return group.reduce((sum, place) => sum + 1 + place.children.length, 0);
}

/** @param {any} found the document of stacks.json */
export function threadCard(found) {
  return h(
    "section",
    { class: "card", "aria-label": "Threads" },
    h("header", {}, h("h2", {}, "Threads"), h("span", { class: "note" }, "at the moment of the capture, innermost frame first")),
    ...found.threads.slice(0, LISTED).map((/** @type {any} */ thread) =>
      h(
        "details",
        { open: found.threads.length === 1 },
        h("summary", {}, thread.name || "thread", " ", h("span", { class: "faint" }, String(thread.native_id)), " ", h("span", { class: thread.state === "running" ? "tag hot" : "tag" }, thread.state), thread.gil ? h("span", { class: "tag" }, "holds the GIL") : "", " ", h("span", { class: "soft mono" }, thread.frames[0]?.function ?? "no Python frame")),
        frameList(thread.frames),
      ),
    ),
  );
}

/** @param {any} heap the document of heap.json */
export function heapCard(heap) {
  /** @type {Map<string, any>} */
  const now = new Map(heap.after.types.map((/** @type {any} */ each) => [each.name, each]));
  const between = heap.full_collection ? "a full collection in between: what is left is held" : "no full collection in between: some of it may only wait for one";
  const unsure = heap.before.cut || heap.after.cut ? "; there are more objects than were counted" : "";
  return table(
    "Objects that grew",
    `${figure(heap.after.objects)} objects tracked, looked at twice ${duration(heap.seconds)} apart; ${between}${unsure}`,
    ["Type", "More", "More bytes", "Now"],
    heap.growth.slice(0, ROWS).map((/** @type {any} */ each) => [h("span", { class: "mono" }, each.name), signed(each.count, figure), signed(each.bytes, size), figure(now.get(each.name)?.count ?? 0)]),
  );
}

/** @param {any} found the document of tracemalloc.json */
export function allocationCard(found) {
  return table(
    "Lines that allocated",
    `${size(found.grown_bytes)} grew within ${duration(found.seconds)}, as the target's tracemalloc saw it`,
    ["Line", "More bytes", "More blocks"],
    found.lines.slice(0, ROWS).map((/** @type {any} */ each) => [h("span", { class: "mono", title: each.file }, `${shortPath(each.file)}:${each.line}`), signed(each.bytes, size), signed(each.blocks, figure)]),
  );
}

/**
 * @param {number} value
 * @param {(value: number) => string} words
 */
function signed(value, words) {
  return `${value > 0 ? "+" : ""}${words(value)}`;
}

/** @param {any} found the document of requests.json */
export function requestCards(found) {
  /** @type {HTMLElement[]} */
  const cards = [];
  if (found.in_flight.length)
    cards.push(
      table(
        "Requests under way",
        `${figure(found.in_flight_count)} at the moment of the capture, the oldest first`,
        ["Request", "For", "Route", "Trace"],
        longest(found.in_flight).map((each) => [[h("span", { class: "mono" }, each.request), each.on_loop ? h("span", { class: "tag hot" }, "on the loop") : ""], duration(each.seconds), each.route, trace(each)]),
      ),
    );
  const ended = [
    ["Slowest requests", found.slowest],
    ["Failed requests", found.failed],
  ];
  for (const [title, records] of ended)
    if (records.length)
      cards.push(
        table(
          title,
          "of the last minutes",
          ["Request", "Took", "Upstream", "Status", "Trace"],
          records.slice(0, ROWS).map((/** @type {any} */ each) => [
            [h("span", { class: "mono" }, `${each.method} ${each.path}`), h("div", { class: "faint" }, each.route, each.detail ? `: ${each.detail}` : "")],
            duration(each.seconds),
            [each.upstream_seconds ? duration(each.upstream_seconds) : "–", h("div", { class: "faint" }, each.upstream)],
            h("span", { class: each.status >= 500 || each.flags ? "tag bad" : "tag" }, `${each.status} ${each.flags ?? ""}`.trim()),
            trace(each),
          ]),
        ),
      );
  const routes = found.routes.filter((/** @type {any} */ each) => each.requests);
  if (routes.length)
    cards.push(
      table(
        "Routes",
        "since the worker started",
        ["Route", "Requests", "Errors", "Rate", "p50", "p99", "Own p99"],
        routes.slice(0, ROWS).map((/** @type {any} */ each) => [
          [each.route || "no route", h("div", { class: "faint" }, each.listener)],
          figure(each.requests),
          each.errors ? `${figure(each.errors)} (${percent(each.errors / each.requests)})` : "0",
          [`${figure(each.rate, 1)}/s`, each.rate_before === null ? "" : h("div", { class: "faint" }, `${figure(each.rate_before, 1)}/s before`)],
          milliseconds(each.latency_p50),
          milliseconds(each.latency_p99),
          milliseconds(each.own_p99),
        ]),
      ),
    );
  return cards;
}

/** @param {any[]} requests @returns {any[]} */
function longest(requests) {
  return [...requests].sort((a, b) => b.seconds - a.seconds).slice(0, ROWS);
}

/** @param {any} each */
function trace(each) {
  return each.trace ? h("span", { class: "mono faint", title: each.trace }, each.trace.slice(0, 16)) : "";
}

/** @param {number | null} seconds */
function milliseconds(seconds) {
  return seconds === null ? "–" : duration(seconds);
}
