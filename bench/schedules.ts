// Schedules as they run: the timeline of two devices beside the simulator's, on the segment times that were measured.
import { mkdirSync, writeFileSync } from "node:fs";
import { Mesh, measuredTimeline, nn, planTrainStep, type Timeline, timelineSvg, trainStep } from "../lib/index.ts";
import { pipelineActions } from "../lib/passes/actions.ts";
import { scheduleNames } from "../lib/passes/schedules.ts";
import { type SegmentTimes, simulate } from "../lib/passes/simulate.ts";
import { median } from "./measure.ts";
import { batchOf, stepOptions, workloads } from "./models.ts";
import { digits, type Row, type Table } from "./report.ts";

const steps = 9;
const microbatches = 8;

/** Median seconds of every stage's segments. */
function segmentTimes(timelines: readonly Timeline[]): SegmentTimes[] {
  const of = (stage: number, segment: "F" | "B" | "W"): number => {
    const runs = timelines.flatMap((t) => t.runs.filter((r) => r.stage === stage && r.segment === segment));
    return runs.length === 0 ? 0 : median(runs.map((r) => r.end - r.start));
  };
  return Array.from({ length: timelines[0]!.stages }, (_, s) => ({ F: of(s, "F"), B: of(s, "B"), W: of(s, "W") }));
}

async function measure(schedule: string): Promise<{ row: Row; off: number }> {
  await using mesh = await Mesh.open({ device: "cpu", axes: { pp: 2 }, threads: 1 });
  const work = workloads.gpt6;
  const model = new nn.GPT2(work.config);
  const options = { ...stepOptions(model, work), microbatches, schedule };
  const { compiled } = await planTrainStep(mesh, model, options);
  using step = await trainStep(mesh, model, options);
  const batch = batchOf(work);
  await step.run(batch);
  mesh.engine.profile(true);
  const timelines: Timeline[] = [];
  for (let k = 0; k < steps; k++) {
    await step.run(batch);
    timelines.push(measuredTimeline(`${schedule}, as run`, step.plan.devices, mesh.engine.stats().profile));
  }
  const { devices } = pipelineActions(compiled.schedule, compiled.boundary);
  const simulated = simulate(devices, { stages: segmentTimes(timelines) });
  const measured = median(timelines.map((t) => t.makespan));
  const off = Math.abs(measured / simulated.makespan - 1);
  const folder = new URL("../docs/schedules/", import.meta.url);
  mkdirSync(folder, { recursive: true });
  const middle = timelines.find((t) => t.makespan === measured)!;
  writeFileSync(new URL(`${schedule}-measured.svg`, folder), timelineSvg(middle));
  const row = {
    schedule,
    "measured ms": digits(measured * 1e3),
    "simulated ms": digits(simulated.makespan * 1e3),
    "off %": digits(100 * off),
    "bubble %": digits(100 * median(timelines.map((t) => t.bubble))),
    "simulated bubble %": digits(100 * simulated.bubble),
  };
  return { row, off };
}

/** Every schedule on pp=2. `worst`: the largest share by which a measured timeline is off the simulated one. */
export async function benchSchedules(): Promise<{ table: Table; worst: number }> {
  const rows: Row[] = [];
  let worst = 0;
  for (const schedule of scheduleNames) {
    const { row, off } = await measure(schedule);
    rows.push(row);
    worst = Math.max(worst, off);
  }
  const note = `medians of ${steps} steps, ${microbatches} microbatches, one thread a device; pictures in docs/schedules`;
  return { table: { title: `Schedules of ${workloads.gpt6.name} on pp=2`, note, rows }, worst };
}
