// Bundles main.mjs. Grafana's modules end in .mjs, so their default imports of CommonJS packages come as Node has them, an object
// that holds the default; Grafana's own bundler takes it out, and so does this.

import { readFile } from "node:fs/promises";
import { build } from "esbuild";

const unwrap = {
  name: "unwrap",
  setup(on) {
    on.onLoad({ filter: /@grafana\/.*\.mjs$/ }, async ({ path }) => ({
      contents: (await readFile(path, "utf8")).replace(
        /^import (\w+)(, \{[^}]*\})? from '([^.'][^']*)';/gm,
        (_, name, rest, from) => `import $${name}${rest ?? ""} from '${from}'; const ${name} = $${name}?.default ?? $${name};`,
      ),
      loader: "js",
    }));
  },
};

await build({
  entryPoints: ["main.mjs"],
  outfile: "bundle.js",
  bundle: true,
  minify: true,
  format: "iife",
  logLevel: "error",
  alias: { "@grafana/assistant": "./assistant.mjs" },
  define: { "process.env.NODE_ENV": '"production"' },
  loader: { ".css": "empty", ".svg": "dataurl" },
  plugins: [unwrap],
});
