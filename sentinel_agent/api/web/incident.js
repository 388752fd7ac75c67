// One incident: the answer first, then the evidence, then the files.

import { ApiError, get, request, save } from "./api.js";
import { ago, date, duration, figure, h, percent, reading, shown, size } from "./dom.js";
import { allocationCard, heapCard, requestCards, taskCard, threadCard } from "./evidence.js";
import { hottest, originOf, readTimeline, treeOf } from "./profile.js";
import { StackExplorer } from "./stacks.js";

const LISTED = 100;

/**
 * @param {HTMLElement} main
 * @param {string} id
 * @param {AbortSignal} signal
 */
export async function incidentPage(main, id, signal) {
  const incident = await get(`incidents/${encodeURIComponent(id)}`, signal);
  const has = new Set(incident.artifacts.map((/** @type {any} */ artifact) => artifact.name));
  /** @param {string} name */
  const file = async (name) => (has.has(name) ? get(path(id, name), signal).catch(fault) : null);
  const names = ["series.json", "stacks.speedscope.json", "tasks.json", "stacks.json", "findings.json", "heap.json", "tracemalloc.json", "requests.json"];
  const read = await Promise.all(names.map(file));
  const [series, stacks, tasks, threads, found, heap, allocations, requests] = read;
  const timeline = stacks?.profiles ? readTimeline(stacks) : null;
  const faults = read.filter((each) => each instanceof ApiError).map((each) => each.message);
  const explorer = new StackExplorer();
  main.replaceChildren(
    head(incident, main),
    found?.findings?.length ? findings(found, faults) : answer(incident, timeline, tasks, faults),
    facts(incident),
    ...(timeline || series?.metrics ? [explorer.timelineCard] : []),
    ...(timeline ? [explorer.flameCard, explorer.hotCard] : []),
    ...(requests?.in_flight ? requestCards(requests) : []),
    ...(heap?.growth ? [heapCard(heap)] : []),
    ...(allocations?.lines ? [allocationCard(allocations)] : []),
    ...(tasks?.groups ? [taskCard(tasks)] : []),
    ...(threads?.threads ? [threadCard(threads)] : []),
    h("div", { class: "two" }, files(incident), ...(incident.captures.length ? [captures(incident)] : [])),
  );
  document.title = `${shown(incident.rule)} · Sentinel Agent`;
  if (timeline || series?.metrics) explorer.load(timeline, series?.metrics ? series : null, [incident.time], incident.metric);
}

/** @param {unknown} error */
function fault(error) {
  if (error instanceof ApiError || error instanceof SyntaxError) return error;
  throw error;
}

/** @param {string} id @param {string} name */
function path(id, name) {
  return `incidents/${encodeURIComponent(id)}/artifacts/${encodeURIComponent(name)}`;
}

/** @param {any} incident @param {HTMLElement} main */
function head(incident, main) {
  const remove = h(
    "button",
    {
      type: "button",
      onclick: async () => {
        if (!confirm(`Delete incident ${incident.id} for good?`)) return;
        try {
          await request(`incidents/${encodeURIComponent(incident.id)}`, { method: "DELETE" });
          location.hash = "#/";
        } catch (error) {
          main.prepend(h("p", { class: "card body error", role: "alert" }, error instanceof Error ? error.message : String(error)));
        }
      },
    },
    "Delete",
  );
  return h(
    "div",
    { class: "head" },
    h("div", {}, h("div", { class: "crumb" }, h("a", { href: "#/" }, "Incidents"), h("span", { class: "faint" }, ` / ${incident.id}`)), h("h1", {}, incident.rule), h("p", { class: "lead" }, incident.summary)),
    remove,
  );
}

/**
 * What the agent concluded, the best first; why each is believed and what to do next are one step away.
 * @param {any} found
 * @param {string[]} faults
 */
function findings(found, faults) {
  const [best, ...others] = found.findings;
  return h(
    "section",
    { class: "card", "aria-label": "Finding" },
    h("div", { class: "answer" }, h("div", { class: "big" }, best.text), reasons(best)),
    ...others.slice(0, LISTED).map((/** @type {any} */ each) => h("details", {}, h("summary", {}, each.text), h("div", { class: "answer plain" }, reasons(each)))),
    found.not_known?.length || faults.length
      ? h(
          "details",
          {},
          h("summary", { class: "soft" }, "What is not known"),
          h("div", { class: "answer plain" }, h("ul", {}, [...(found.not_known ?? []).map((/** @type {any} */ each) => `${each.check}: ${each.why}`), ...faults].map((words) => h("li", {}, words)))),
        )
      : "",
  );
}

/** @param {any} finding */
function reasons(finding) {
  return [
    h("ul", {}, finding.evidence.slice(0, LISTED).map((/** @type {string} */ words) => h("li", {}, words))),
    finding.next_step ? h("p", { class: "next" }, h("b", {}, "Next: "), finding.next_step) : "",
  ];
}

/**
 * @param {any} incident
 * @param {import("./profile.js").Timeline | null} timeline
 * @param {any} tasks
 * @param {string[]} faults
 */
function answer(incident, timeline, tasks, faults) {
  /** @type {(string | Node)[]} */
  const notes = [];
  let big = incident.summary;
  let where = "";
  if (timeline) {
    const since = timeline.since ?? timeline.start;
    const tree = treeOf(timeline, "cpu", [since, timeline.end], null);
    const hot = hottest(tree)[0];
    const frame = hot && timeline.frames[hot.frame];
    if (hot && frame && hot.self > 0) {
      const words = `${frame.name} took ${percent(hot.self / tree.total)} of the CPU since the trigger`;
      if (incident.unit === "percent") {
        big = words;
        where = frame.file;
      } else notes.push(words);
    } else if (incident.unit === "percent") notes.push("No thread was seen on a CPU since the trigger: look at all threads, or at a slice before it.");
  }
  const group = tasks?.groups?.[0];
  if (group) {
    const words = `${figure(group.count)} of ${figure(tasks.count)} tasks are ${group.coroutine}${group.waiting_on ? `, waiting on ${group.waiting_on}` : ""}`;
    if (incident.metric === "tasks") {
      big = words;
      const frame = group.frames.findLast((/** @type {any} */ each) => originOf(each.file) === "own") ?? group.frames.at(-1);
      where = frame ? `${frame.file}:${frame.line}` : "";
    } else notes.push(words);
  }
  notes.push(...faults);
  return h(
    "section",
    { class: "card answer", "aria-label": "Finding" },
    h("div", { class: "big" }, big),
    where && h("div", { class: "where" }, where),
    notes.length > 0 && h("ul", {}, notes.map((note) => h("li", {}, note))),
  );
}

/**
 * A threshold in the unit of its metric; `diff` is percent over the baseline.
 * @param {string} name
 * @param {any} value
 * @param {string} unit
 */
function limit(name, value, unit) {
  if (typeof value !== "number") return value;
  return name === "diff" ? `${value}%` : reading(value, unit);
}

/** @param {any} incident */
function facts(incident) {
  const target = incident.target;
  const limits = Object.entries(incident.thresholds).filter(([, value]) => value !== null);
  /** @type {[string, string, string?][]} */
  const pairs = [
    ["When", date(incident.time), ago(incident.time)],
    ["Service", target.service, `${target.instance} ${target.worker}`],
    ["Process", `${target.pid} ${target.name}`, target.python ? `Python ${target.python} on ${incident.host}` : incident.host],
    ["Value", reading(incident.value, incident.unit), incident.metric],
    ["Usual", reading(incident.baseline, incident.unit), "baseline"],
    ["Reason", incident.reason, limits.map(([name, value]) => `${name} ${limit(name, value, incident.unit)}`).join(", ")],
    ["Sealed", `${duration(incident.sealed_time - incident.time)} after the trigger`],
    ["Target paused", incident.longest_pause_us ? `at most ${figure(incident.longest_pause_us)} µs` : "never", incident.lost_samples ? `${incident.lost_samples} samples lost` : ""],
  ];
  return h(
    "section",
    { class: "card body", "aria-label": "Facts" },
    h("dl", { class: "facts" }, pairs.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, more ? h("div", { class: "faint" }, more) : "")))),
    target.command?.length ? h("p", { class: "faint mono" }, target.command.join(" ")) : "",
  );
}

/** @param {any} incident */
function files(incident) {
  return h(
    "section",
    { class: "card", "aria-label": "Files" },
    h("header", {}, h("h2", {}, "Files"), h("span", { class: "note" }, "open formats")),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        [{ name: "incident.json", format: "json", bytes: null }, ...incident.artifacts].map((artifact) =>
          h(
            "tr",
            {},
            h("td", {}, h("a", { href: `#download-${artifact.name}`, onclick: (/** @type {Event} */ event) => { event.preventDefault(); void save(path(incident.id, artifact.name), `${incident.id}-${artifact.name}`); } }, artifact.name)),
            h("td", { class: "soft" }, artifact.format),
            h("td", { class: "right soft" }, artifact.bytes === null ? "" : size(artifact.bytes)),
          ),
        ),
      ),
    ),
  );
}

/** @param {any} incident */
function captures(incident) {
  return h(
    "section",
    { class: "card", "aria-label": "Captures" },
    h("header", {}, h("h2", {}, "Captures")),
    h(
      "table",
      {},
      h(
        "tbody",
        {},
        incident.captures.map((/** @type {any} */ report) =>
          h(
            "tr",
            {},
            h("td", {}, report.kind),
            h("td", {}, h("span", { class: report.status === "ok" ? "tag good" : "tag bad" }, report.status)),
            h("td", { class: "soft" }, report.reason ?? "", report.seconds ? h("div", { class: "faint" }, `in ${duration(report.seconds)}`) : ""),
          ),
        ),
      ),
    ),
  );
}
