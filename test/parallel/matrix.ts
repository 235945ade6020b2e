// The composition matrix: every pair of ways to split a model, and every triple, trained beside one device. The tables of
// docs/LAYOUTS.md are made from it.
import assert from "node:assert/strict";
import { PlanError } from "../../lib/core/errors.ts";
import { fromStorage } from "../../lib/core/dtype.ts";
import type { ModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { type StepResult, type TrainStepOptions, trainStep } from "../../lib/train/step.ts";
import { Draw } from "../conformance/draw.ts";

/** One way to use an axis. */
interface Way {
  readonly axis: string;
  readonly options: Partial<Pick<TrainStepOptions, "zero" | "sequenceParallel" | "schedule">>;
}

/** By their names in the tables. */
export const ways: Readonly<Record<string, Way>> = {
  dp: { axis: "dp", options: {} },
  "zero 1": { axis: "fsdp", options: { zero: 1 } },
  "zero 2": { axis: "fsdp", options: { zero: 2 } },
  "zero 3": { axis: "fsdp", options: { zero: 3 } },
  tp: { axis: "tp", options: { sequenceParallel: "off" } },
  "tp-sp": { axis: "tp", options: { sequenceParallel: "on" } },
  cp: { axis: "cp", options: {} },
  ep: { axis: "ep", options: {} },
  gpipe: { axis: "pp", options: { schedule: "gpipe" } },
  "1f1b": { axis: "pp", options: { schedule: "1f1b" } },
  "interleaved-1f1b": { axis: "pp", options: { schedule: "interleaved-1f1b" } },
  "zb-h1": { axis: "pp", options: { schedule: "zb-h1" } },
  "zb-v": { axis: "pp", options: { schedule: "zb-v" } },
};

/** Names of the ways, in the tables' order. */
export const names: readonly string[] = Object.keys(ways);

/** Names of ways of different axes, in order: a cell. */
export type Cell = readonly string[];

const common = {
  vocabSize: 29,
  width: 16,
  layers: 2,
  heads: 4,
  headDim: 4,
  innerWidth: 24,
  maxPositions: 8,
  initializerRange: 0.3,
  endTokens: [],
  attentionDropout: 0,
} as const;

const gpt2: ModelConfig = {
  ...common,
  architecture: "gpt2",
  activation: "gelu_new",
  tieWordEmbeddings: true,
  layerNormEps: 1e-5,
  embeddingDropout: 0,
  residualDropout: 0,
};

const llama = (experts: boolean): ModelConfig => ({
  ...common,
  architecture: experts ? "mixtral" : "llama",
  activation: "silu",
  tieWordEmbeddings: false,
  kvHeads: 2,
  rmsNormEps: 1e-5,
  ropeTheta: 10_000,
  ropeScaling: undefined,
  attentionBias: false,
  mlpBias: false,
  // The balance term is each microbatch's own, so that it depends on their number: it weighs nothing here.
  experts: experts ? { count: 4, perToken: 2, balanceWeight: 0 } : undefined,
});

/** The models by their letters in the tables. */
export const models = {
  G: { name: "GPT-2", config: gpt2 },
  L: { name: "Llama", config: llama(false) },
  M: { name: "Mixtral", config: llama(true) },
} as const;

/** A model's letter. */
export type Letter = keyof typeof models;

/** Letters of all models. */
export const letters = Object.keys(models) as Letter[];

/** Cells of this many ways, in the tables' order. */
function combinations(count: number): Cell[] {
  const extend = (cell: Cell): Cell[] => {
    const last = names.indexOf(cell.at(-1) ?? "");
    const axes = cell.map((name) => ways[name]!.axis);
    return names.slice(last + 1).flatMap((name) => (axes.includes(ways[name]!.axis) ? [] : [[...cell, name]]));
  };
  let cells: Cell[] = [[]];
  for (let i = 0; i < count; i++) cells = cells.flatMap(extend);
  return cells;
}

export const singles: readonly Cell[] = combinations(1);
export const pairs: readonly Cell[] = combinations(2);
export const triples: readonly Cell[] = combinations(3);

/** All axes at once, without and with ep: on 32 and 64 devices. */
export const wholes: readonly Cell[] = [[], ["ep"]].flatMap((ep) =>
  names.flatMap((name) => (ways[name]!.axis === "pp" ? [["dp", "zero 3", "tp-sp", "cp", ...ep, name]] : [])),
);

/** A cell's name: `dp, tp`. */
export function cellText(cell: Cell): string {
  return cell.join(", ");
}

/** One of the models for a cell: that with experts where they are split, else each in turn. */
export function ownModel(cell: Cell): Letter {
  if (cell.includes("ep")) return "M";
  return letters[cell.reduce((sum, name) => sum + names.indexOf(name), 0) % letters.length]!;
}

const batchSize = 10;
const length = 7;
const steps = 3;

/** What a model was trained to. */
interface Trained {
  readonly results: readonly StepResult[];
  readonly weights: ReadonlyMap<string, readonly number[]>;
}

/** Largest difference from one device: relative to the value, or to 0.01 where that is smaller. */
export const tolerance = { loss: 1e-4, gradNorm: 1e-3, weights: 1e-3 } as const;

function optionsOf(cell: Cell): Way["options"] {
  return Object.fromEntries(cell.flatMap((name) => Object.entries(ways[name]!.options)));
}

/** Trains a model: pipelines in three microbatches, other pairs in two, the rest in one. Rejects with PlanError. */
async function train(letter: Letter, cell: Cell): Promise<Trained> {
  const { config } = models[letter];
  const axes = Object.fromEntries(cell.map((name) => [ways[name]!.axis, 2]));
  const microbatches = "pp" in axes ? 3 : cell.length === 2 ? 2 : 1;
  await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1, timeoutMs: 60_000 });
  const model = createModel(config);
  using step = await trainStep(mesh, model, {
    loss: ({ inputs, targets }) => model.loss(inputs, targets),
    // A large eps: keys' biases have no gradient but rounding, which AdamW would magnify to full steps.
    optimizer: adamw({ learningRate: 1e-2, weightDecay: 0.1, eps: 1e-3 }),
    batchSize,
    batch: model.batchFields(length),
    microbatches,
    clipNorm: 1,
    seed: 3,
    sequenceParallel: "off",
    ...optionsOf(cell),
  });
  const results: StepResult[] = [];
  for (let k = 0; k < steps; k++) {
    const draw = new Draw(`batch ${k}`);
    const inputs = draw.ints([batchSize, length], 0, config.vocabSize).data;
    // The last sample counts little, the one before not at all.
    const counts = (i: number): boolean => i < 8 * length || i >= 9 * length + 5;
    const targets = draw.ints([batchSize, length], 0, config.vocabSize).data.map((t, i) => (counts(i) ? t : -100));
    results.push(await step.run({ inputs, targets }));
  }
  const weights = model
    .parameters()
    .map((p): [string, number[]] => [p.path, fromStorage(p.dtype, mesh.store.read(p.id))]);
  return { results, weights: new Map(weights) };
}

function assertNear(found: number, expected: number, relative: number, what: string): void {
  const scale = Math.max(Math.abs(expected), 1e-2);
  if (!(Math.abs(found - expected) <= relative * scale)) assert.fail(`${what} is ${found}, not ${expected}`);
}

/** Throws unless losses, gradient norms and weights are those of one device. */
function assertTrained({ results, weights }: Trained, whole: Trained): void {
  assert.equal(results.length, whole.results.length);
  results.forEach((result, k) => {
    const expected = whole.results[k]!;
    assertNear(result.loss, expected.loss, tolerance.loss, `the loss of step ${k + 1}`);
    assertNear(result.gradNorm, expected.gradNorm, tolerance.gradNorm, `the gradient's norm of step ${k + 1}`);
  });
  assert.deepEqual([...weights.keys()], [...whole.weights.keys()]);
  for (const [path, values] of whole.weights) {
    values.forEach((v, i) => {
      assertNear(weights.get(path)![i]!, v, tolerance.weights, `${path}, element ${i},`);
    });
  }
}

/** Undefined for a layout that trains, else why it is refused. */
export type Outcome = string | undefined;

/** Why a layout is refused, without the mesh's name. Throws what is no refusal. */
function reasonOf(error: unknown): string {
  if (error instanceof PlanError) return error.message.replace(/^mesh [^:]*: /, "");
  throw error;
}

/** What one device makes of each model. */
const references = new Map<Letter, Promise<Trained>>();

/** Trains a model in a cell's layout and on one device. Throws where they differ. */
export async function outcomeOf(letter: Letter, cell: Cell): Promise<Outcome> {
  const found = await train(letter, cell).catch(reasonOf);
  if (typeof found === "string") return found;
  const whole = references.get(letter) ?? train(letter, []);
  references.set(letter, whole);
  assertTrained(found, await whole);
  return undefined;
}
