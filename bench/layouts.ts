// Training steps split over two devices of one core each, in turns with one device that has two threads.
import { Mesh, nn, type TrainStep, trainStep } from "../lib/index.ts";
import type { PartResult } from "./aims.ts";
import { inTurns, median, ratio } from "./measure.ts";
import { batchOf, stepFlops, stepOptions, workloads } from "./models.ts";
import { digits, type Row } from "./report.ts";

const work = workloads.gpt6;
const rounds = 9;

interface Running extends AsyncDisposable {
  readonly name: string;
  run(): Promise<number>;
}

async function start(name: string, axes: Record<string, number>, microbatches = 1): Promise<Running> {
  const devices = Object.values(axes).reduce((a, b) => a * b, 1);
  const mesh = await Mesh.open({ device: "cpu", axes, threads: Math.max(1, 2 / devices) });
  const model = new nn.GPT2(work.config);
  const step: TrainStep<"inputs" | "targets"> = await trainStep(mesh, model, {
    ...stepOptions(model, work),
    microbatches,
  });
  const batch = batchOf(work);
  return {
    name,
    async run() {
      await step.run(batch);
      return mesh.engine.stats().lastSeconds;
    },
    async [Symbol.asyncDispose]() {
      step[Symbol.dispose]();
      await mesh[Symbol.asyncDispose]();
    },
  };
}

/** tp=2, dp=2 and pp=2 (two numbers of microbatches) beside one device. */
export async function benchLayouts(): Promise<PartResult> {
  const rows: Row[] = [];
  let tp2 = 0;
  const limits: number[] = [];
  const compare = async (split: Promise<Running>, whole: Promise<Running>, limit: number): Promise<number> => {
    await using a = await split;
    await using b = await whole;
    const times = await inTurns(rounds, { split: () => a.run(), whole: () => b.run() });
    const share = ratio(times.whole!, times.split!);
    for (const [name, seconds] of [[b.name, times.whole!] as const, [a.name, times.split!] as const]) {
      const middle = median(seconds);
      rows.push({
        layout: name,
        "median ms": digits(middle * 1e3),
        "GFLOP/s": digits(stepFlops(work) / middle / 1e9),
        ...(name === a.name
          ? { "of one device": digits(share), limit: digits(limit), "of the limit": digits(share / limit) }
          : {}),
      });
    }
    return share / limit;
  };
  tp2 = await compare(start("tp=2", { tp: 2 }), start("one device, 2 threads", {}), 1);
  await compare(start("dp=2", { dp: 2 }), start("one device, 2 threads", {}), 1);
  for (const m of [4, 8]) {
    const split = start(`pp=2, 1f1b, ${m} microbatches`, { pp: 2 }, m);
    limits.push(await compare(split, start(`one device, 2 threads, ${m} microbatches`, {}, m), m / (m + 1)));
  }
  return {
    tables: [
      {
        title: `Layouts of ${work.name} on two devices with a core each, beside one device with two threads`,
        note: `Medians of ${rounds} steps by the engine's clock, in turns; f32. limit: m / (m + p - 1) under pp.`,
        rows,
      },
    ],
    figures: { tp2, pp2: Math.min(...limits) },
  };
}
