// Which page is shown, what repeats while it is, and what is said when the agent does not answer.

import { ApiError, setToken } from "./api.js";
import { h } from "./dom.js";
import { incidentPage } from "./incident.js";
import { incidentsPage } from "./incidents.js";
import { rulesPage, targetPage, targetsPage } from "./targets.js";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const state = /** @type {HTMLElement} */ (document.getElementById("state"));
/** @type {AbortController | null} */
let current = null;

async function show() {
  current?.abort();
  const page = new AbortController();
  current = page;
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [place = "", id = ""] = path.split("/").map(decode);
  for (const link of document.querySelectorAll("nav a"))
    link.toggleAttribute("aria-current", (link.getAttribute("data-page") ?? "") === (place || "incidents"));
  document.title = "Sentinel Agent";
  try {
    if (place === "incidents" && id) await incidentPage(main, id, page.signal);
    else if (place === "targets" && id) await targetPage(main, id, repeat, page.signal);
    else if (place === "targets") await targetsPage(main, repeat, page.signal);
    else if (place === "rules") await rulesPage(main, repeat, page.signal);
    else await incidentsPage(main, new URLSearchParams(query), repeat, page.signal);
    if (!page.signal.aborted) answered(true);
  } catch (error) {
    if (!page.signal.aborted) failed(error);
  }

  /**
   * @param {() => Promise<void>} work
   * @param {number} seconds
   */
  function repeat(work, seconds) {
    const round = async () => {
      if (page.signal.aborted) return;
      if (!document.hidden) {
        try {
          await work();
          answered(true);
        } catch (error) {
          if (page.signal.aborted) return;
          answered(false);
        }
      }
      if (!page.signal.aborted) setTimeout(round, seconds * 1000);
    };
    setTimeout(round, seconds * 1000);
  }
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** @param {boolean} well */
function answered(well) {
  state.className = `state ${well ? "on" : "off"}`;
  state.textContent = well ? "connected" : "no answer";
}

/** @param {unknown} error */
function failed(error) {
  if (error instanceof ApiError && error.status === 401) {
    askForToken();
    return;
  }
  answered(!(error instanceof ApiError && error.status === 0));
  const message = error instanceof Error ? error.message : String(error);
  const hint = error instanceof ApiError ? error.hint : null;
  main.replaceChildren(
    h("section", { class: "card body error", role: "alert" }, h("h1", {}, message), hint && h("p", { class: "lead" }, hint), h("p", {}, h("a", { href: "#/" }, "All incidents"))),
  );
}

function askForToken() {
  state.className = "state off";
  state.textContent = "token needed";
  const field = /** @type {HTMLInputElement} */ (h("input", { type: "password", "aria-label": "Token", autocomplete: "off", required: true }));
  main.replaceChildren(
    h(
      "section",
      { class: "card body login" },
      h("h1", {}, "A token is needed"),
      h("p", { class: "lead" }, "This agent listens where others reach it. Enter one of its tokens; it is kept until this tab is closed."),
      h("form", { onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); setToken(field.value.trim()); void show(); } }, field, h("button", { type: "submit", class: "primary" }, "Open")),
    ),
  );
  field.focus();
}

addEventListener("hashchange", () => {
  void show().then(() => {
    scrollTo(0, 0);
    main.focus({ preventScroll: true });
  });
});
void show();
