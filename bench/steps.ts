// Training steps: tokens and arithmetic a second under several layouts, and PyTorch's step beside them.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Mesh, nn, trainStep } from "../lib/index.ts";
import { info } from "../lib/runtime/addon.ts";
import { sample, type Timing, timing } from "./measure.ts";
import { batchOf, stepFlops, stepOptions, type Workload, workloads } from "./models.ts";
import { digits, type Row, type Table } from "./report.ts";

const cores = info().cores;

type Precision = "f32" | "bf16";

function row(work: Workload, by: string, precision: Precision, times: Timing, loss: number): Row {
  const tokens = work.batchSize * work.seqLen;
  return {
    model: work.name,
    by,
    precision,
    "median ms": digits(times.median * 1e3),
    "least ms": digits(times.least * 1e3),
    "tokens/s": Math.round(tokens / times.median),
    "GFLOP/s": digits(stepFlops(work) / times.median / 1e9),
    "first loss": digits(loss),
  };
}

/** Seconds of each step, and the loss before the first. */
interface Measured {
  readonly by: string;
  readonly samples: readonly number[];
  /** CPU seconds of each step: all threads of the process together. */
  readonly cpu: readonly number[];
  readonly loss: number;
}

async function measure(
  work: Workload,
  axes: Record<string, number>,
  precision: Precision,
  maxTime: number,
  threads?: number,
): Promise<Measured> {
  await using mesh = await Mesh.open({ device: "cpu", axes, ...(threads === undefined ? {} : { threads }) });
  const model = new nn.GPT2(work.config);
  using step = await trainStep(mesh, model, { ...stepOptions(model, work), precision });
  const batch = batchOf(work);
  const { loss } = await step.run(batch);
  const cpu: number[] = [];
  const run = async (): Promise<void> => {
    const began = process.cpuUsage();
    await step.run(batch);
    const { user, system } = process.cpuUsage(began);
    cpu.push((user + system) / 1e6);
  };
  const { all } = await sample(`${work.name} ${mesh.layout}`, run, { maxTime, minSamples: 3 });
  return { by: `meshwork ${mesh.layout}`, samples: all, cpu, loss };
}

/** PyTorch's times for the same step; null where there is no PyTorch. */
function measureTorch(work: Workload, precision: Precision, maxTime: number, threads = cores): Measured | null {
  const { layers, width, heads, vocabSize } = work.config;
  const sizes = [layers, width, heads, vocabSize, work.seqLen, work.batchSize, precision, maxTime, threads].map(String);
  const script = fileURLToPath(new URL("torch_step.py", import.meta.url));
  const python = ["python3", "/usr/bin/python3"].find((p) => spawnSync(p, ["-c", "import torch"]).status === 0);
  if (python === undefined) return null;
  const { status, stdout, stderr } = spawnSync(python, [script, ...sizes], { encoding: "utf8" });
  if (status !== 0) throw new Error(`torch_step.py failed: ${stderr}`);
  const { version, ...times }: { version: string; samples: number[]; cpu: number[]; loss: number } = JSON.parse(stdout);
  return { by: `PyTorch ${version}`, ...times };
}

interface Compared {
  readonly rows: readonly Row[];
  /** PyTorch's least time over meshwork's; null without PyTorch. */
  readonly ratio: number | null;
}

/** Both, in turns, so that what else the machine does meets both alike. */
async function compare(work: Workload, precision: Precision): Promise<Compared> {
  const rounds: { own: Measured; torch: Measured | null }[] = [];
  for (let i = 0; i < 2; i++) {
    rounds.push({ own: await measure(work, {}, precision, 4), torch: measureTorch(work, precision, 4) });
  }
  const [first] = rounds;
  const own = timing(rounds.flatMap((r) => r.own.samples));
  const rows = [row(work, first!.own.by, precision, own, first!.own.loss)];
  if (!first!.torch) return { rows, ratio: null };
  const torch = timing(rounds.flatMap((r) => r.torch?.samples ?? []));
  rows.push(row(work, first!.torch.by, precision, torch, first!.torch.loss));
  return { rows, ratio: torch.least / own.least };
}

/** CPU seconds of both on one thread: what other work on the machine changes least. */
async function compareWork(work: Workload): Promise<Compared> {
  const own = await measure(work, {}, "f32", 4, 1);
  const torch = measureTorch(work, "f32", 4, 1);
  const line = ({ by, cpu }: Measured): Row => {
    return { model: work.name, by: `${by}, one thread`, precision: "f32", "CPU s": digits(timing(cpu).least) };
  };
  if (!torch) return { rows: [line(own)], ratio: null };
  return { rows: [line(own), line(torch)], ratio: timing(torch.cpu).least / timing(own.cpu).least };
}

/** The demo and the 6-layer GPT on one device, tp=2 and pp=2, and PyTorch where it is installed. */
export async function benchSteps(): Promise<{ table: Table; ratio: number | null }> {
  const rows: Row[] = [];
  const alone = async (work: Workload, axes: Record<string, number>, maxTime: number): Promise<void> => {
    const { by, samples, loss } = await measure(work, axes, "f32", maxTime);
    rows.push(row(work, by, "f32", timing(samples), loss));
  };
  for (const axes of [{}, { dp: 2 }, { tp: 2 }, { pp: 2 }]) await alone(workloads.demo, axes, 2);
  for (const axes of [{ tp: 2 }, { pp: 2 }]) await alone(workloads.gpt6, axes, 4);
  const f32 = await compare(workloads.gpt6, "f32");
  const bf16 = await compare(workloads.gpt6, "bf16");
  const work = await compareWork(workloads.gpt6);
  rows.push(...f32.rows, ...bf16.rows, ...work.rows);
  const { ratio } = work;
  const both = ratio === null || f32.ratio === null ? null : { all: digits(f32.ratio), one: digits(ratio) };
  return {
    table: {
      title: "Training steps",
      note:
        "Forward, backward, clipping, AdamW; all cores together. GFLOP/s count 6 for each weight and token and causal attention." +
        (both === null
          ? " No PyTorch here."
          : ` PyTorch's time over meshwork's, f32: ${both.all} with all cores (least wall times), ${both.one} on one thread (CPU seconds).`),
      rows,
    },
    ratio: ratio === null ? null : digits(ratio),
  };
}
