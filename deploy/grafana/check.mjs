// Has Grafana's own schema judge the dashboards: node check.mjs DIR, where DIR has the packages
// @grafana/schema and typescript. Each dashboard, panel, its options and how its lines are drawn
// become constants of the schema's types; what these do not know, or lack, the compiler tells.
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const there = resolve(process.argv[2]);
const boards = join(import.meta.dirname, "dashboards");
const TYPES = "./node_modules/@grafana/schema/dist/types";
const OPTIONS = {
  stat: `import("${TYPES}/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js").Options`,
  timeseries: `import("${TYPES}/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js").Options`,
};

// Enumerations are written as the texts they stand for; options that are left out have defaults.
const lines = [
  `import type * as common from "${TYPES}/common/common.gen.js";`,
  `import type * as schema from "${TYPES}/raw/dashboard/x/dashboard_types.gen.js";`,
  "type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]",
  "  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;",
  "type Some<T> = { [K in keyof T]?: Partial<T[K]> };",
];
const judged = (type, value) => lines.push(`void (${JSON.stringify(value)} satisfies ${type});`);

for (const file of readdirSync(boards)) {
  const board = JSON.parse(readFileSync(join(boards, file), "utf8"));
  judged("Plain<schema.Dashboard>", board);
  for (const panel of board.panels) {
    if (panel.type === "row") {
      judged("Plain<schema.RowPanel>", panel);
      continue;
    }
    judged("Plain<schema.Panel>", panel);
    judged(`Some<Plain<${OPTIONS[panel.type]}>>`, panel.options);
    judged("Plain<common.GraphFieldConfig>", panel.fieldConfig.defaults.custom ?? {});
  }
}
writeFileSync(join(there, "check.ts"), lines.join("\n"));
const tsc = join(there, "node_modules", "typescript", "bin", "tsc");
const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext"];
execFileSync(process.execPath, [tsc, ...options, "check.ts"], { cwd: there, stdio: "inherit" });
