// Requests to the agent. A token, where one is needed, lives in this tab's session only.

const TOKEN = "sentinel-token";

export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string | null} hint
   */
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

/** @param {string} token */
export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

/** @returns {Record<string, string>} */
function authorisation() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * @param {string} path under /api/v1/
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(`/api/v1/${path}`, {
      ...options,
      headers: { ...authorisation(), .../** @type {Record<string, string>} */ (options.headers ?? {}) },
    });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "The agent does not answer", "It may have ended; the page tries again.");
  }
  if (!response.ok) {
    const found = await response.json().catch(() => null);
    const words = found?.error;
    throw new ApiError(response.status, words?.message ?? `HTTP status ${response.status}`, words?.hint ?? null);
  }
  return response;
}

/**
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, signal) {
  return (await request(path, signal ? { signal } : {})).json();
}

/**
 * @param {string} path
 * @param {unknown} body
 * @returns {Promise<any>}
 */
export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/**
 * Save a file of an incident; through a request of ours, because a link could not bring the token.
 * @param {string} path
 * @param {string} name
 */
export async function save(path, name) {
  const url = URL.createObjectURL(await (await request(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
