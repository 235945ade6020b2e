// The benchmarks: npm run bench [-- kernels collectives steps compiling growth overhead timer schedules checkpoints]
// prints tables and writes them to results/; kernels and collectives take flags.
import { benchCheckpoints } from "./checkpoints.ts";
import { benchCollectives } from "./collectives.ts";
import { benchCompiling, benchGrowth } from "./compiling.ts";
import { flagsHelp, parseCommand, type Selection } from "./flags.ts";
import { benchKernels } from "./kernels.ts";
import { benchOverhead } from "./overhead.ts";
import { machine, save, type Table, tableText } from "./report.ts";
import { benchSchedules } from "./schedules.ts";
import { benchSteps } from "./steps.ts";
import { benchTimer } from "./timer.ts";

/** A part of the benchmarks, and how its figure stands against the aim. */
interface Part {
  run(asked: Selection): Promise<{ table: Table; aim?: string }>;
}

function verdict(met: boolean): string {
  return met ? "met" : "MISSED";
}

const parts: Readonly<Record<string, Part>> = {
  overhead: {
    async run() {
      const { table, microseconds } = await benchOverhead();
      return {
        table,
        aim: `JavaScript's share of a step: ${microseconds} us, aim 100: ${verdict(microseconds < 100)}`,
      };
    },
  },
  timer: {
    async run() {
      const { table, percent } = await benchTimer();
      return { table, aim: `a timer late while training: ${percent} %, aim 0.1: ${verdict(percent <= 0.1)}` };
    },
  },
  compiling: {
    async run() {
      const { table, firstSeconds } = await benchCompiling();
      return {
        table,
        aim: `compiling GPT-2 for 8 devices: ${firstSeconds} s, aim 1.5: ${verdict(firstSeconds < 1.5)}`,
      };
    },
  },
  growth: {
    async run() {
      const { table, longest } = await benchGrowth();
      return { table, aim: `48 layers on 64 devices, the longest: ${longest} s, aim 20: ${verdict(longest < 20)}` };
    },
  },
  checkpoints: {
    async run() {
      const { table, ratio } = await benchCheckpoints();
      return { table, aim: `a save's stall over the copy's own time: ${ratio}, aim 1.5: ${verdict(ratio <= 1.5)}` };
    },
  },
  kernels: { run: async (asked) => ({ table: await benchKernels(asked) }) },
  schedules: {
    async run() {
      const { table, worst } = await benchSchedules();
      const percent = Math.round(1000 * worst) / 10;
      return {
        table,
        aim: `schedules, measured against simulated: ${percent} % off, aim 15: ${verdict(worst <= 0.15)}`,
      };
    },
  },
  collectives: { run: async (asked) => ({ table: await benchCollectives(asked) }) },
  steps: {
    async run() {
      const { table, ratio } = await benchSteps();
      if (ratio === null) return { table };
      return {
        table,
        aim: `f32 step, PyTorch's CPU time over ours on one thread: ${ratio}, aim 0.5: ${verdict(ratio >= 0.5)}`,
      };
    },
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
const aims: string[] = [];
for (const [name, part] of Object.entries(parts)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const { table, aim } = await part.run(selection);
  tables.push(table);
  if (aim !== undefined) aims.push(aim);
  console.log(tableText(table));
}
for (const aim of aims) console.log(aim);
if (wanted.length === 0) console.log(`written to ${save(on, tables)}`);
