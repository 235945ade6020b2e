// `npm run bench:gpu`: kernels and training steps on one CUDA device. Without a GPU it says how many were not measured,
// and why.
import { Mesh, nn, optim, trainStep } from "../lib/index.ts";
import { cudaStatus } from "../lib/runtime/addon.ts";
import { everything, type Selection } from "./flags.ts";
import { benchKernels } from "./kernels.ts";
import { sample } from "./measure.ts";
import { digits, machine, type Row, save, type Table, tableText } from "./report.ts";

interface Workload {
  readonly name: string;
  readonly config: Readonly<Record<string, string | number | boolean>>;
  readonly batchSize: number;
  readonly seqLen: number;
  /** Weights in matrix products, the head included; layers and width of the attention. */
  readonly weights: number;
  readonly attention: number;
}

const PEAK = 989e12; // dense bfloat16 of an H100 or H200

function gpt2(name: string, layers: number, width: number, heads: number, batchSize: number): Workload {
  const config = { model_type: "gpt2", vocab_size: 50_257, n_positions: 1024, n_embd: width, n_layer: layers };
  const dropout = { embd_pdrop: 0, attn_pdrop: 0, resid_pdrop: 0 };
  const weights = 12 * layers * width * width + 50_257 * width;
  const all = { ...config, ...dropout, n_head: heads };
  return { name, config: all, batchSize, seqLen: 1024, weights, attention: layers * width };
}

function llama(name: string, layers: number, width: number, inner: number, heads: number, kvHeads: number): Workload {
  const config = {
    model_type: "llama",
    vocab_size: 32_000,
    hidden_size: width,
    intermediate_size: inner,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
  };
  const projections = 2 * width * width + (2 * width * width * kvHeads) / heads;
  const weights = layers * (projections + 3 * width * inner) + 32_000 * width;
  return { name, config, batchSize: 8, seqLen: 4096, weights, attention: layers * width };
}

const workloads: readonly Workload[] = [
  gpt2("GPT-2 124M", 12, 768, 12, 32),
  gpt2("GPT-2 1.5B", 48, 1600, 25, 16),
  llama("Llama 1B-shaped", 16, 2048, 8192, 32, 8),
];

async function measure({ name, config, batchSize, seqLen, weights, attention }: Workload): Promise<Row> {
  await using mesh = await Mesh.open({ device: "cuda" });
  const model = nn.create(nn.parseConfig(config));
  const began = performance.now();
  const tokens = { dtype: "i32", shape: [seqLen] } as const;
  using step = await trainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    optimizer: optim.adamw({ learningRate: 1e-4, weightDecay: 0.1 }),
    batchSize,
    batch: { inputs: tokens, targets: tokens },
    clipNorm: 1,
    precision: "bf16",
  });
  const token = (i: number): number => (i * 7919 + Math.floor(i / 13)) % 32_000;
  const inputs = Int32Array.from({ length: batchSize * seqLen }, (_, i) => token(i));
  const targets = Int32Array.from({ length: batchSize * seqLen }, (_, i) => token(i + 1));
  const { loss } = await step.run({ inputs, targets });
  const first = (performance.now() - began) / 1e3;
  const times = await sample(name, () => step.run({ inputs, targets }), { maxTime: 20, minSamples: 10 });
  const count = batchSize * seqLen;
  const flops = count * (6 * weights + 6 * attention * seqLen);
  return {
    model: name,
    batch: `${batchSize} x ${seqLen}`,
    "first step s": digits(first),
    "median ms": digits(times.median * 1e3),
    "tokens/s": Math.round(count / times.median),
    "MFU %": digits((100 * flops) / times.median / PEAK),
    "first loss": digits(loss),
  };
}

/** The kernels that docs/PERFORMANCE.md has aims for; the copy's rate is the measure of those that memory bounds. */
const kernels: Selection = {
  ...everything,
  device: "cuda",
  ops: [
    ...["copy", "elementwise", "softmax", "layer_norm", "rms_norm", "matmul"],
    ...["attention_64", "attention_128", "attention_grad_64", "attention_grad_128"],
  ],
  types: ["bf16"],
  sizes: [2 ** 26],
};

const { gpus, detail } = cudaStatus();
if (gpus === 0) {
  console.log(`No GPU can be used (${detail}).`);
  console.log(`${workloads.length} workloads and ${kernels.ops?.length ?? 0} kernels were not measured.`);
} else {
  const rows: Row[] = [];
  for (const workload of workloads) rows.push(await measure(workload));
  const table: Table = {
    title: "Training steps on one GPU",
    note: "bfloat16: forward, backward, clip and AdamW. MFU against 989 TFLOP/s; causal attention counted by half.",
    rows,
  };
  const tables = [await benchKernels(kernels), table];
  for (const each of tables) console.log(tableText(each));
  console.log(`written to ${save(machine(), tables)}`);
}
