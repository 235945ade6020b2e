// The composition matrix: every pair of ways to split a model, and every triple, trained beside one device. The tables
// of docs/LAYOUTS.md are made from it.
import { PlanError } from "../../lib/core/errors.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { type StepResult, type TrainStepOptions, trainStep } from "../../lib/train/step.ts";
import { Draw } from "../conformance/draw.ts";
import { testDevice } from "../device.ts";
import { assertTrained, smallGpt2, smallLlama, type Trained, weightsOf } from "./trained.ts";

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

const sizes = { vocabSize: 29, width: 16, layers: 2, heads: 4, headDim: 4, innerWidth: 24 } as const;

/** The models by their letters in the tables. */
export const models = {
  G: { name: "GPT-2", config: smallGpt2(sizes) },
  L: { name: "Llama", config: smallLlama(sizes) },
  M: { name: "Mixtral", config: smallLlama(sizes, true) },
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

function optionsOf(cell: Cell): Way["options"] {
  return Object.fromEntries(cell.flatMap((name) => Object.entries(ways[name]!.options)));
}

/** Trains a model: pipelines in three microbatches, other pairs in two, the rest in one. Rejects with PlanError. */
async function train(letter: Letter, cell: Cell): Promise<Trained> {
  const { config } = models[letter];
  const axes = Object.fromEntries(cell.map((name) => [ways[name]!.axis, 2]));
  const microbatches = "pp" in axes ? 3 : cell.length === 2 ? 2 : 1;
  await using mesh = await Mesh.open({ device: testDevice, axes, threads: 1, timeoutMs: 60_000 });
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
  return { results, weights: weightsOf(mesh, model) };
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
