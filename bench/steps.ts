// Training steps: PyTorch's and ours in turns, and the memory that both need.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Mesh, nn, trainStep } from "../lib/index.ts";
import { info } from "../lib/runtime/addon.ts";
import type { AimName, Figures, PartResult } from "./aims.ts";
import { median, sample, type Timing, timing } from "./measure.ts";
import { batchOf, stepFlops, stepOptions, type Workload, workloads } from "./models.ts";
import { digits, type Row, type Table } from "./report.ts";

/** Threads of a device that has the machine for itself. */
export const allThreads = info().cores;

type Precision = "f32" | "bf16";

/** Seconds of each step, and the loss before the first. */
interface Measured {
  readonly by: string;
  readonly samples: readonly number[];
  /** CPU seconds of each step: all threads of the process together. */
  readonly cpu: readonly number[];
  readonly loss: number;
  /** Peak resident memory of its process; 0 where that is ours. */
  readonly peakBytes: number;
}

async function measure(work: Workload, precision: Precision, maxTime: number, threads: number): Promise<Measured> {
  await using mesh = await Mesh.open({ device: "cpu", threads });
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
  const { all } = await sample(work.name, run, { maxTime, minSamples: 3 });
  return { by: "meshwork", samples: all, cpu, loss, peakBytes: 0 };
}

/** The Python that has PyTorch; undefined where there is none. */
const python = ["python3", "/usr/bin/python3"].find((p) => spawnSync(p, ["-c", "import torch"]).status === 0);

/** PyTorch's times for the same step, in a process of its own. */
function measureTorch(work: Workload, precision: Precision, maxTime: number, threads: number): Measured | null {
  if (python === undefined) return null;
  const { layers, width, heads, vocabSize } = work.config;
  const sizes = [layers, width, heads, vocabSize, work.seqLen, work.batchSize, precision, maxTime, threads].map(String);
  const script = fileURLToPath(new URL("torch_step.py", import.meta.url));
  const { status, stdout, stderr } = spawnSync(python, [script, ...sizes], { encoding: "utf8" });
  if (status !== 0) throw new Error(`torch_step.py failed: ${stderr}`);
  const { version, blas, ...times }: Omit<Measured, "by"> & { version: string; blas: string } = JSON.parse(stdout);
  return { by: `PyTorch ${version}, ${blas}`, ...times };
}

interface Compared {
  readonly rows: readonly Row[];
  /** PyTorch's median time over ours; null without PyTorch. */
  readonly ratio: number | null;
  readonly torchBytes: number;
}

/** Both, in turns, so that what else the machine does meets both alike. */
async function compare(work: Workload, precision: Precision, seconds: number, rounds: number): Promise<Compared> {
  const own: Measured[] = [];
  const torch: Measured[] = [];
  for (let i = 0; i < rounds; i++) {
    own.push(await measure(work, precision, seconds, allThreads));
    const other = measureTorch(work, precision, seconds, allThreads);
    if (other) torch.push(other);
  }
  const all = (measured: readonly Measured[]): Timing => timing(measured.flatMap(({ samples }) => samples));
  const line = (measured: readonly Measured[]): Row => {
    const times = all(measured);
    return {
      model: work.name,
      by: measured[0]!.by,
      precision,
      "median ms": digits(times.median * 1e3),
      "least ms": digits(times.least * 1e3),
      "CPU s": digits(median(measured.flatMap(({ cpu }) => cpu))),
      "tokens/s": Math.round((work.batchSize * work.seqLen) / times.median),
      "GFLOP/s": digits(stepFlops(work) / times.median / 1e9),
      "first loss": digits(measured[0]!.loss),
    };
  };
  if (torch.length === 0) return { rows: [line(own)], ratio: null, torchBytes: 0 };
  return {
    rows: [line(own), line(torch)],
    ratio: all(torch).median / all(own).median,
    torchBytes: Math.max(...torch.map(({ peakBytes }) => peakBytes)),
  };
}

/** CPU seconds of both on one thread: what other work on the machine changes least. */
async function compareWork(work: Workload): Promise<readonly Row[]> {
  const line = ({ by, cpu }: Measured): Row => {
    return { model: work.name, by: `${by}, one thread`, precision: "f32", "CPU s": digits(median(cpu)) };
  };
  const own = await measure(work, "f32", 4, 1);
  const torch = measureTorch(work, "f32", 4, 1);
  return torch ? [line(own), line(torch)] : [line(own)];
}

/** Peak resident memory of a process that does nothing but three steps. */
function peakBytes(work: "gpt2Short", precision: Precision): number {
  const script = fileURLToPath(new URL("step-memory.ts", import.meta.url));
  const args = ["--import", "tsx/esm", script, work, precision];
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: "utf8" });
  if (status !== 0) throw new Error(`step-memory.ts failed: ${stderr}`);
  const { bytes, planned }: { bytes: number; planned: number } = JSON.parse(stdout);
  if (!(bytes > planned / 2)) throw new Error(`step-memory.ts: ${bytes} bytes for a plan of ${planned}`);
  return bytes;
}

/** GPTs in float32 and bfloat16 beside PyTorch, by time and by memory. */
export async function benchSteps(): Promise<PartResult> {
  const rows: Row[] = [];
  const memory: Row[] = [];
  const figures: Figures = {};
  const torchless = "no python3 with torch here";
  const cases: readonly (readonly [AimName, Workload, Precision, number])[] = [
    ["gpt6F32", workloads.gpt6, "f32", 4],
    ["gpt6Bf16", workloads.gpt6, "bf16", 4],
    ["gpt2F32", workloads.gpt2Short, "f32", 6],
    ["gpt2Bf16", workloads.gpt2Short, "bf16", 6],
  ];
  for (const [aim, work, precision, seconds] of cases) {
    const { rows: own, ratio, torchBytes } = await compare(work, precision, seconds, 2);
    rows.push(...own);
    figures[aim] = ratio ?? torchless;
    if (work !== workloads.gpt2Short) continue;
    const bytes = peakBytes("gpt2Short", precision);
    const line = (by: string, size: number): Row => ({
      model: work.name,
      precision,
      by,
      "peak MiB": Math.round(size / 2 ** 20),
    });
    memory.push(line("meshwork", bytes));
    if (torchBytes > 0) memory.push(line("PyTorch", torchBytes));
    if (precision === "f32") figures.memory = torchBytes > 0 ? bytes / torchBytes : torchless;
  }
  rows.push(...(await compareWork(workloads.gpt6)));
  const tables: Table[] = [
    {
      title: "Training steps beside PyTorch",
      note: `Forward, backward, clipping, AdamW; ${allThreads} threads; medians of both in turns, PyTorch in a process of its own. GFLOP/s count 6 for each weight and token and causal attention.`,
      rows,
    },
    {
      title: "Peak resident memory of a training step",
      note: "By getrusage, of a process that does nothing else: runtime, compiler and weights included.",
      rows: memory,
    },
  ];
  return { tables, figures };
}
