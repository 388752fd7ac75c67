// A timeline of stacks (speedscope file of ours), and trees of any slice of it.

/**
 * @typedef {object} Frame
 * @property {string} name
 * @property {string} file
 * @property {"own" | "library" | "python"} origin
 */
/**
 * @typedef {object} Run one stack of one thread for a while; times in seconds since the epoch
 * @property {number} thread
 * @property {number} start
 * @property {number} end
 * @property {number[]} stack functions, root first
 * @property {string} state r, w or -
 */
/**
 * @typedef {object} Timeline
 * @property {Frame[]} frames
 * @property {string[]} threads
 * @property {Run[]} runs
 * @property {number} start
 * @property {number} end
 * @property {number | null} since
 * @property {number} lost
 */
/**
 * @typedef {object} Tree
 * @property {number} frame -1 for the root, -2 - n for thread n
 * @property {number} self
 * @property {number} total
 * @property {number} left what the other side of a difference has
 * @property {Tree[]} children
 */
/** @typedef {"cpu" | "wall"} View */

/**
 * @param {string} file
 * @returns {Frame["origin"]}
 */
export function originOf(file) {
  if (!file || file.startsWith("<frozen")) return "python";
  if (/\/(site|dist)-packages\//.test(file)) return "library";
  return /\/lib\/python3/.test(file) ? "python" : "own";
}

/**
 * @param {any} file a parsed speedscope file
 * @returns {Timeline}
 */
export function readTimeline(file) {
  /** @type {Frame[]} */
  const frames = [];
  /** @type {Map<string, number>} */
  const known = new Map();
  const places = file.shared.frames.map((/** @type {any} */ frame) => {
    const key = `${frame.name}\0${frame.file ?? ""}`;
    let at = known.get(key);
    if (at === undefined) {
      at = frames.length;
      known.set(key, at);
      const path = String(frame.file ?? "");
      frames.push({ name: String(frame.name), file: path, origin: originOf(path) });
    }
    return at;
  });
  const ours = file.sentinel ?? {};
  const start = Number(ours.start ?? 0);
  /** @type {Run[]} */
  const runs = [];
  let end = start;
  /** @type {string[]} */
  const threads = [];
  for (const [thread, profile] of file.profiles.entries()) {
    threads.push(String(profile.name));
    const states = String(ours.states?.[thread] ?? "");
    const scale = profile.unit === "seconds" ? 1 : 1e-9;
    let at = start + profile.startValue * scale;
    for (const [number, stack] of profile.samples.entries()) {
      const next = at + profile.weights[number] * scale;
      if (stack.length && next > at)
        runs.push({
          thread,
          start: at,
          end: next,
          stack: stack.map((/** @type {number} */ index) => places[index]),
          state: states[number] ?? (ours.on_cpu ? "r" : "-"),
        });
      at = next;
    }
    end = Math.max(end, at);
  }
  return { frames, threads, runs, start, end, since: ours.since ?? null, lost: ours.lost ?? 0 };
}

/**
 * @param {Run} run
 * @param {View} view
 */
function counts(run, view) {
  return view === "wall" || run.state === "r";
}

/** @returns {Tree} */
function node(/** @type {number} */ frame) {
  return { frame, self: 0, total: 0, left: 0, children: [] };
}

/**
 * What ran in a slice. Seconds; with `rest`, `left` has what ran there, brought to the same length of time.
 * @param {Timeline} timeline
 * @param {View} view
 * @param {[number, number]} slice
 * @param {number | null} thread
 * @param {[number, number][]} [rest]
 * @returns {Tree}
 */
export function treeOf(timeline, view, slice, thread, rest = []) {
  const root = node(-1);
  /** @type {Map<Tree, Map<number, Tree>>} */
  const index = new Map();
  const byThread = view === "wall" && thread === null && timeline.threads.length > 1;
  const length = slice[1] - slice[0];
  const other = rest.reduce((sum, [from, to]) => sum + Math.max(0, to - from), 0);
  /**
   * @param {Run} run
   * @param {number} cost
   * @param {boolean} here
   */
  const add = (run, cost, here) => {
    let at = root;
    /** @param {number} frame */
    const down = (frame) => {
      let children = index.get(at);
      if (!children) index.set(at, (children = new Map()));
      let child = children.get(frame);
      if (!child) {
        child = node(frame);
        children.set(frame, child);
        at.children.push(child);
      }
      at = child;
      count(child);
    };
    /** @param {Tree} place */
    const count = (place) => {
      if (here) place.total += cost;
      else place.left += cost;
    };
    count(root);
    if (byThread) down(-2 - run.thread);
    for (const frame of run.stack) down(frame);
    if (here) at.self += cost;
  };
  for (const run of timeline.runs) {
    if (!counts(run, view) || (thread !== null && run.thread !== thread)) continue;
    const cost = overlap(run, slice);
    if (cost > 0) add(run, cost, true);
    for (const part of rest) {
      const before = overlap(run, part);
      if (before > 0 && other > 0) add(run, (before * length) / other, false);
    }
  }
  return root;
}

/**
 * @param {Run} run
 * @param {[number, number]} slice
 */
function overlap(run, slice) {
  return Math.min(run.end, slice[1]) - Math.max(run.start, slice[0]);
}

/**
 * How many threads ran, per bin: the course of what the recorder saw.
 * @param {Timeline} timeline
 * @param {View} view
 * @param {number} from
 * @param {number} to
 * @param {number} bins
 * @returns {number[]}
 */
export function activity(timeline, view, from, to, bins) {
  const found = new Array(bins).fill(0);
  const width = (to - from) / bins;
  if (!(width > 0)) return found;
  for (const run of timeline.runs) {
    if (!counts(run, view)) continue;
    const first = Math.max(0, Math.floor((run.start - from) / width));
    const last = Math.min(bins - 1, Math.floor((run.end - from) / width));
    for (let bin = first; bin <= last; bin++) {
      const begin = from + bin * width;
      found[bin] += Math.max(0, overlap(run, [begin, begin + width])) / width;
    }
  }
  return found;
}

/**
 * @typedef {object} Hot
 * @property {number} frame
 * @property {number} self
 * @property {number} total
 * @property {number} left
 */

/**
 * The functions of a tree by what they cost themselves; recursion counts once.
 * @param {Tree} root
 * @returns {Hot[]}
 */
export function hottest(root) {
  /** @type {Map<number, Hot>} */
  const found = new Map();
  /** @type {[Tree, Set<number>][]} */
  const todo = root.children.map((child) => [child, new Set()]);
  for (let item = todo.pop(); item; item = todo.pop()) {
    const [place, above] = item;
    let seen = above;
    if (place.frame >= 0) {
      let entry = found.get(place.frame);
      if (!entry) found.set(place.frame, (entry = { frame: place.frame, self: 0, total: 0, left: 0 }));
      entry.self += place.self;
      if (!above.has(place.frame)) {
        entry.total += place.total;
        entry.left += place.left;
        seen = new Set(above).add(place.frame);
      }
    }
    for (const child of place.children) todo.push([child, seen]);
  }
  return [...found.values()].sort((a, b) => b.self - a.self || b.total - a.total);
}
