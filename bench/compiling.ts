// Tracing and compiling: GPT-2 (12 layers) for 8 devices, by stage of the pass list; nothing is computed.
import { Mesh, nn, planTrainStep } from "../lib/index.ts";
import { timing } from "./measure.ts";
import { stepOptions, workloads } from "./models.ts";
import { digits, type Row, type Table } from "./report.ts";

const runs = 3;

async function measure(axes: Record<string, number>): Promise<Row[]> {
  await using mesh = await Mesh.open({ device: "null", axes });
  const totals: number[] = [];
  const stages = new Map<string, number[]>();
  let instructions = 0;
  for (let i = 0; i < runs; i++) {
    const model = new nn.GPT2(workloads.gpt2.config);
    const times = new Map<string, number>();
    const began = performance.now();
    const { plan } = await planTrainStep(mesh, model, {
      ...stepOptions(model, workloads.gpt2),
      onTime: (stage, seconds) => times.set(stage, (times.get(stage) ?? 0) + seconds),
    });
    totals.push((performance.now() - began) / 1000);
    instructions = plan.devices.reduce((sum, d) => sum + d.instructions, 0);
    for (const [stage, seconds] of times) stages.set(stage, [...(stages.get(stage) ?? []), seconds]);
  }
  const line = (stage: string, samples: readonly number[]): Row => {
    const { median, least } = timing(samples);
    const first = samples[0]!;
    return {
      mesh: String(mesh.layout),
      stage,
      "first ms": digits(first * 1e3),
      "median ms": digits(median * 1e3),
      "least ms": digits(least * 1e3),
    };
  };
  return [
    ...[...stages].map(([stage, samples]) => line(stage, samples)),
    { ...line("total", totals), "instructions, all devices": instructions },
  ];
}

/** Times of GPT-2 on 8 devices, and the first total of each mesh in seconds. */
export async function benchCompiling(): Promise<{ table: Table; firstSeconds: number }> {
  const rows: Row[] = [];
  for (const axes of [{ dp: 8 }, { dp: 2, pp: 2, tp: 2 }]) rows.push(...(await measure(axes)));
  const firsts = rows.filter((row) => row.stage === "total").map((row) => Number(row["first ms"]) / 1e3);
  return {
    table: {
      title: "Tracing and compiling GPT-2 for 8 devices",
      note: `Of ${runs} runs in one process the first, the median, the least. Without loading: nothing is allocated.`,
      rows,
    },
    firstSeconds: Math.max(...firsts),
  };
}
