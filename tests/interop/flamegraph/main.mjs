// Gives an answer of SelectMergeStacktraces or Diff (JSON, in `window.answer`) to Grafana's flame graph, as the data source's
// back end would: a nested set, depth first. Bars of a level are hung under the bar that spans them.

import { createDataFrame, createTheme, FieldType } from "@grafana/data";
import { FlameGraph } from "@grafana/flamegraph";
import { createElement } from "react";
import { createRoot } from "react-dom/client";

function nestedSet({ names, levels }, unit) {
  const sides = "leftTicks" in window.answer.flamegraph ? 2 : 1;
  const size = sides * 3 + 1;
  const rows = levels.map(({ values }) => {
    const bars = [];
    const ends = new Array(sides).fill(0);
    for (let at = 0; at < values.length; at += size) {
      const bar = { name: names[values[at + size - 1]], x: 0, total: [], self: [], children: [] };
      for (let side = 0; side < sides; side++) {
        const [gap, total, self] = values.slice(at + side * 3, at + side * 3 + 3).map(Number);
        bar.x += ends[side] + gap;
        ends[side] += gap + total;
        bar.total.push(total);
        bar.self.push(self);
      }
      bar.end = bar.x + bar.total.reduce((sum, each) => sum + each, 0);
      bars.push(bar);
    }
    return bars;
  });
  for (const [depth, bars] of rows.entries())
    for (const bar of depth ? bars : []) rows[depth - 1].find((parent) => parent.x <= bar.x && bar.end <= parent.end).children.push(bar);
  const columns = { level: [], value: [], self: [], label: [], valueRight: [], selfRight: [] };
  const walk = (bar, level) => {
    columns.level.push(level);
    columns.label.push(bar.name);
    for (const [side, suffix] of ["", "Right"].slice(0, sides).entries()) {
      columns[`value${suffix}`].push(bar.total[side]);
      columns[`self${suffix}`].push(bar.self[side]);
    }
    for (const child of bar.children) walk(child, level + 1);
  };
  walk(rows[0][0], 0);
  const number = (name) => ({ name, values: columns[name], type: FieldType.number, config: { unit } });
  return createDataFrame({
    name: "response",
    meta: { preferredVisualisationType: "flamegraph" },
    fields: [
      { name: "level", values: columns.level, type: FieldType.number, config: {} },
      { name: "label", values: columns.label, type: FieldType.string, config: {} },
      ...["value", "self", ...(sides === 2 ? ["valueRight", "selfRight"] : [])].map(number),
    ],
  });
}

const frame = nestedSet(window.answer.flamegraph, window.unit ?? "ns");
document.title = `${frame.length} bars`;
createRoot(document.getElementById("root")).render(
  createElement(FlameGraph, { data: frame, getTheme: () => createTheme({ colors: { mode: "dark" } }), disableCollapsing: true, stickyHeader: false, vertical: true }),
);
