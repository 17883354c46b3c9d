// What fipo computed and packed; tests/report/golden.py writes the file, and a test there holds it to fipo.

import { readFileSync } from "node:fs";

import { loadReport } from "../../src/fipo/report/web/model/report.js";

export const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url), "utf8"));

export const goldenReport = () => loadReport((name) => golden.blocks[name] ?? null);

export const withInfinity = (knobs) =>
  Object.fromEntries(Object.entries(knobs).map(([name, value]) => [name, value === "inf" ? Infinity : value]));
