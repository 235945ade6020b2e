// The benchmarks: `npm run bench` runs all parts, prints their tables and which aims are reached, and writes both to
// results/; `npm run bench -- kernels steps` runs some and writes nothing; kernels and collectives take flags.
import { aimsTable, type Figures, type PartResult } from "./aims.ts";
import { benchCheckpoints } from "./checkpoints.ts";
import { benchCollectives } from "./collectives.ts";
import { benchByHand } from "./by-hand.ts";
import { benchCompiling, benchGrowth } from "./compiling.ts";
import { flagsHelp, parseCommand, type Selection } from "./flags.ts";
import { benchKernels } from "./kernels.ts";
import { benchLayouts } from "./layouts.ts";
import { benchMatmul } from "./matmul.ts";
import { type Helper, NativeProgram, startNative } from "./native.ts";
import { benchOverhead } from "./overhead.ts";
import { machine, save, type Table, tableText } from "./report.ts";
import { benchSchedules } from "./schedules.ts";
import { benchSteps } from "./steps.ts";
import { benchTimer } from "./timer.ts";

let started: Helper | undefined;
/** The program of bench/native that knows what the machine can do. */
function probe(): Helper {
  started ??= startNative("probe");
  return started;
}

const parts: Readonly<Record<string, (asked: Selection) => Promise<PartResult>>> = {
  overhead: async () => {
    const { table, microseconds } = await benchOverhead();
    return { tables: [table], figures: { overhead: microseconds } };
  },
  compiling: async () => {
    const { table, firstSeconds } = await benchCompiling();
    return { tables: [table], figures: { compiling: firstSeconds } };
  },
  matmul: () => benchMatmul(probe()),
  "by-hand": () => benchByHand(probe()),
  layouts: benchLayouts,
  steps: benchSteps,
  schedules: async () => {
    const { table, worst } = await benchSchedules();
    return { tables: [table], figures: { schedules: 100 * worst } };
  },
  timer: async () => {
    const { table, percent } = await benchTimer();
    return { tables: [table], figures: { timer: percent } };
  },
  checkpoints: async () => {
    const { table, ratio } = await benchCheckpoints();
    return { tables: [table], figures: { checkpoints: ratio } };
  },
  kernels: async (asked) => ({ tables: [await benchKernels(asked)] }),
  collectives: async (asked) => ({ tables: [await benchCollectives(asked)] }),
  growth: async () => {
    const { table, longest } = await benchGrowth();
    return { tables: [table], figures: { growth: longest } };
  },
};

function commandOf(args: readonly string[]): { wanted: readonly string[]; selection: Selection } {
  try {
    const { parts: wanted, selection } = parseCommand(args);
    return { wanted, selection };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    console.error(`${error.message}\n${flagsHelp}`);
    process.exit(2);
  }
}

const { wanted, selection } = commandOf(process.argv.slice(2));
const unknown = wanted.filter((name) => !Object.hasOwn(parts, name));
if (unknown.length > 0) {
  console.error(`no part is named ${unknown.join(", ")}; there are ${Object.keys(parts).join(", ")}`);
  process.exit(2);
}
const on = machine();
console.log(
  Object.entries(on)
    .map(([name, value]) => `${name}: ${value}`)
    .join(", "),
);
if (on.load > on.cores) console.log(`The machine is busy (load ${on.load} on ${on.cores} cores): times are too long.`);
console.log();
const tables: Table[] = [];
const figures: Figures = {};
for (const [name, run] of Object.entries(parts)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const began = performance.now();
  const result = await run(selection);
  tables.push(...result.tables);
  Object.assign(figures, result.figures);
  for (const table of result.tables) console.log(tableText(table));
  console.log(`${name} took ${Math.round((performance.now() - began) / 1000)} s\n`);
}
if (started instanceof NativeProgram) started[Symbol.dispose]();
const aims = aimsTable(figures);
console.log(tableText(aims));
if (wanted.length === 0) console.log(`written to ${save(on, [aims, ...tables])}`);
