// The watched processes, and one of them live.

import { ApiError, get, post } from "./api.js";
import { h, reading, shortPath } from "./dom.js";
import { readTimeline } from "./profile.js";
import { StackExplorer } from "./stacks.js";

/** @typedef {(work: () => Promise<void>, seconds: number) => void} Repeat */

/** @type {Record<string, string>} */
const UNITS = { cpu: "percent", cpu_limit: "percent", rss: "bytes", rss_limit: "percent", io_read: "bytes_per_second", io_write: "bytes_per_second", io_wait: "percent", throttled: "percent", ctx_voluntary: "per_second", ctx_involuntary: "per_second", loop_stall: "seconds", gc_pause: "seconds", gc_share: "percent" };
const SHOWN = ["cpu", "rss", "tasks", "threads", "fds"];

/** @param {any} target @param {string[]} names */
function readings(target, names) {
  return h(
    "div",
    { class: "readings" },
    names.filter((name) => name in target.readings).map((name) => h("span", {}, h("span", { class: "soft" }, `${name} `), h("b", {}, reading(target.readings[name], UNITS[name] ?? "count")))),
  );
}

/**
 * @param {HTMLElement} main
 * @param {Repeat} repeat
 * @param {AbortSignal} signal
 */
export async function targetsPage(main, repeat, signal) {
  const count = h("p", { class: "lead", role: "status" });
  const place = h("section", { class: "card", "aria-label": "Targets" });
  main.replaceChildren(h("div", { class: "head" }, h("div", {}, h("h1", {}, "Targets"), count)), place);
  const draw = async () => {
    const found = await get("targets", signal);
    count.textContent = `${found.length} watched`;
    if (!found.length) {
      place.replaceChildren(h("p", { class: "empty" }, h("b", {}, "Nothing is watched here"), "Start an agent on this data directory: sentinel-agent attach PID"));
      return;
    }
    place.replaceChildren(
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "list" },
          h("thead", {}, h("tr", {}, h("th", {}, "Service"), h("th", {}, "Process"), h("th", {}, "Now"))),
          h(
            "tbody",
            {},
            found.map((/** @type {any} */ target) => {
              const name = `${target.target.service} ${target.target.worker === "main" ? "" : target.target.worker}`;
              return h(
                "tr",
                {},
                h("td", {}, target.live ? h("a", { href: `#/targets/${target.pid}` }, name) : name, h("div", { class: "faint" }, target.target.instance)),
                h("td", {}, `${target.pid} ${target.target.name}`, h("div", { class: "faint" }, target.target.python ? `Python ${target.target.python}` : "no Python found")),
                h("td", {}, readings(target, SHOWN)),
              );
            }),
          ),
        ),
      ),
    );
  };
  await draw();
  repeat(draw, 2);
}

/**
 * @param {HTMLElement} main
 * @param {string} pid
 * @param {Repeat} repeat
 * @param {AbortSignal} signal
 */
export async function targetPage(main, pid, repeat, signal) {
  const targets = await get("targets", signal);
  const target = targets.find((/** @type {any} */ each) => String(each.pid) === pid);
  if (!target) throw new ApiError(404, `Process ${pid} is not watched`, "It may have ended; its incidents are still there.");
  const explorer = new StackExplorer();
  const now = h("div", { class: "body" });
  const message = h("span", { class: "soft", role: "status" });
  let paused = false;
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => { paused = !paused; pause.textContent = paused ? "Go on" : "Pause"; pause.setAttribute("aria-pressed", String(paused)); } }, "Pause");
  const capture = /** @type {HTMLButtonElement} */ (h("button", { type: "button", class: "primary", onclick: () => void start() }, "Capture now"));
  main.replaceChildren(
    h(
      "div",
      { class: "head" },
      h("div", {}, h("div", { class: "crumb" }, h("a", { href: "#/targets" }, "Targets")), h("h1", {}, `${target.target.service} ${target.target.worker === "main" ? "" : target.target.worker}`), h("p", { class: "lead" }, `pid ${pid} on ${target.target.instance}, ${target.target.python ? `Python ${target.target.python}` : target.target.name}`)),
      h("div", { class: "filters" }, message, pause, capture),
    ),
    h("section", { class: "card", "aria-label": "Readings" }, now),
    explorer.timelineCard,
    explorer.flameCard,
    explorer.hotCard,
  );
  document.title = `${target.target.service} · Sentinel Agent`;
  const draw = async () => {
    if (paused) return;
    const [all, series, stacks] = await Promise.all([
      get("targets", signal),
      get(`targets/${pid}/series?since=${Date.now() / 1000 - 150}`, signal),
      get(`targets/${pid}/stacks`, signal).catch((error) => { if (error instanceof ApiError) return null; throw error; }),
    ]);
    const fresh = all.find((/** @type {any} */ each) => String(each.pid) === pid) ?? target;
    now.replaceChildren(readings(fresh, Object.keys(fresh.readings).sort((a, b) => rank(a) - rank(b))));
    explorer.load(stacks ? readTimeline(stacks) : null, series, [], "cpu");
  };
  await draw();
  repeat(draw, 2);

  async function start() {
    capture.disabled = true;
    message.textContent = "capturing…";
    try {
      let job = await post("captures", { pid: Number(pid) });
      while (job.state === "running" && !signal.aborted) {
        await new Promise((resolve) => setTimeout(resolve, 300));
        job = await get(`captures/${job.id}`, signal);
      }
      if (job.incident) message.replaceChildren("saved: ", h("a", { href: `#/incidents/${job.incident}` }, "open the incident"));
      else message.textContent = job.reason;
    } catch (error) {
      message.textContent = error instanceof Error ? error.message : String(error);
    }
    capture.disabled = false;
  }
}

/** @param {string} name */
function rank(name) {
  const at = SHOWN.indexOf(name);
  return at < 0 ? SHOWN.length : at;
}

/**
 * @param {HTMLElement} main
 * @param {Repeat} repeat
 * @param {AbortSignal} signal
 */
export async function rulesPage(main, repeat, signal) {
  const place = h("section", { class: "card", "aria-label": "Rules" });
  main.replaceChildren(h("div", { class: "head" }, h("div", {}, h("h1", {}, "Rules"), h("p", { class: "lead" }, "Where each stands on each target, and why it is not firing"))), place);
  const draw = async () => {
    const found = await get("rules", signal);
    if (!found.length) {
      place.replaceChildren(h("p", { class: "empty" }, h("b", {}, "No agent runs on this data directory"), "Rules are shown of agents that run."));
      return;
    }
    place.replaceChildren(
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "list" },
          h("thead", {}, h("tr", {}, h("th", {}, "Rule"), h("th", {}, "Target"), h("th", {}, "State"), h("th", { class: "right" }, "Value"), h("th", { class: "right" }, "Usual"), h("th", {}, "Why"))),
          h(
            "tbody",
            {},
            found.map((/** @type {any} */ view) => {
              const unit = UNITS[view.metric] ?? "count";
              return h(
                "tr",
                {},
                h("td", {}, h("b", {}, view.rule), h("div", { class: "faint", title: view.source }, shortPath(view.source))),
                h("td", {}, view.target ?? "–", view.pid ? h("div", { class: "faint" }, `pid ${view.pid}`) : ""),
                h("td", {}, h("span", { class: `tag ${view.state === "firing" ? "hot" : view.explanation.can_fire ? "" : "bad"}` }, view.explanation.can_fire ? view.state : "cannot fire")),
                h("td", { class: "right" }, reading(view.value, unit)),
                h("td", { class: "right" }, reading(view.baseline, unit)),
                h("td", {}, view.explanation.now, view.explanation.fires_when?.length ? h("div", { class: "faint" }, `fires when ${view.explanation.fires_when.join(" or ")}`) : "", view.fires ? h("div", { class: "faint" }, `fired ${view.fires === 1 ? "once" : `${view.fires} times`} within its period`) : ""),
              );
            }),
          ),
        ),
      ),
    );
  };
  await draw();
  repeat(draw, 2);
}

