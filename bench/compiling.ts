// Tracing and compiling, nothing is computed: GPT-2 (12 layers) for 8 devices, by stage of the pass list; and how the
// time grows with layers and with devices, for every kind of layout.
import { Mesh, nn, optim, planTrainStep, type TrainStepOptions } from "../lib/index.ts";
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

/** A model of so many layers on a mesh. */
interface Case {
  readonly layers: number;
  readonly axes: Readonly<Record<string, number>>;
  readonly options?: Partial<TrainStepOptions<"inputs" | "targets">>;
  /** Mixtral instead of GPT-2. */
  readonly experts?: boolean;
}

/** All kinds of layouts on 64 devices, 48 layers. */
const kinds: readonly Case[] = [
  { axes: { dp: 64 } },
  { axes: { dp: 64 }, options: { recompute: "full" as const } },
  { axes: { fsdp: 64 }, options: { zero: 1 as const } },
  { axes: { fsdp: 64 }, options: { zero: 3 as const } },
  { axes: { dp: 4, tp: 16 }, options: { sequenceParallel: "off" as const } },
  { axes: { dp: 4, tp: 16 }, options: { sequenceParallel: "on" as const } },
  { axes: { dp: 4, cp: 16 } },
  { axes: { dp: 8, ep: 8 }, experts: true },
  { axes: { pp: 16, dp: 4 }, options: { schedule: "1f1b" } },
  { axes: { pp: 8, dp: 8 }, options: { schedule: "interleaved-1f1b", virtualStages: 3 } },
  { axes: { pp: 16, dp: 4 }, options: { schedule: "zb-h1" } },
  { axes: { pp: 8, dp: 8 }, options: { schedule: "zb-v" } },
  { axes: { pp: 2, dp: 2, fsdp: 2, cp: 2, ep: 2, tp: 2 }, experts: true },
].map((kind) => ({ layers: 48, ...kind }));

const growing: readonly Case[] = [
  ...[12, 24, 48, 96].map((layers) => ({ layers, axes: { dp: 4, tp: 2 } })),
  ...[8, 16, 32, 64].map((dp) => ({ layers: 12, axes: { dp } })),
];

function modelOf({ layers, experts }: Case): nn.LanguageModel {
  const gpt2 = { model_type: "gpt2", n_embd: 1024, n_layer: layers, n_head: 16, n_positions: 1024, vocab_size: 50_257 };
  const mixtral = {
    model_type: "mixtral",
    hidden_size: 1024,
    intermediate_size: 2048,
    num_hidden_layers: layers,
    num_attention_heads: 16,
    num_key_value_heads: 4,
    num_local_experts: 16,
    num_experts_per_tok: 2,
    max_position_embeddings: 1024,
    vocab_size: 50_257,
    tie_word_embeddings: false,
  };
  return nn.create(nn.parseConfig(experts ? mixtral : { ...gpt2, attn_pdrop: 0, embd_pdrop: 0, resid_pdrop: 0 }));
}

async function plan(given: Case): Promise<Row> {
  await using mesh = await Mesh.open({ device: "null", axes: given.axes });
  const model = modelOf(given);
  const used = process.cpuUsage();
  const began = performance.now();
  const { plan } = await planTrainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: optim.adamw({ learningRate: 1e-4 }),
    batchSize: 64,
    batch: model.batchFields(1024),
    clipNorm: 1,
    ...given.options,
  });
  const seconds = (performance.now() - began) / 1000;
  const { user, system } = process.cpuUsage(used);
  return {
    model: given.experts ? "Mixtral" : "GPT-2",
    layers: given.layers,
    mesh: String(mesh.layout),
    options: Object.entries(given.options ?? {})
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
    s: digits(seconds),
    "CPU s": digits((user + system) / 1e6),
    "instructions a device": Math.max(...plan.devices.map((d) => d.instructions)),
  };
}

/**
 * Times of large models: by layers, by equal devices, and of every kind of layout; the longest of the last in seconds.
 */
export async function benchGrowth(): Promise<{ table: Table; longest: number }> {
  await plan(growing[0]!); // loads what compiles
  const rows: Row[] = [];
  for (const given of [...growing, ...kinds]) rows.push(await plan(given));
  return {
    table: {
      title: "Compiling large models",
      note: "Once each, in one process: tracing, compiling and the plan on a mesh of null devices. CPU seconds are of all threads.",
      rows,
    },
    longest: Math.max(...rows.slice(growing.length).map((row) => Number(row.s))),
  };
}
