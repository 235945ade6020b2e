// Random programs as the microbatches of a step: cut into pipeline stages, batches and parameters split at random, on
// any schedule. Losses and gradients, added up over uneven microbatches, are those of the reference, microbatch by
// microbatch.
import assert from "node:assert/strict";
import fc from "fast-check";
import { LoadedStep } from "../../lib/compile/load.ts";
import {
  type CellSpec,
  type CompiledStep,
  compileStep,
  microbatchSizes,
  parameterSpecs,
  type StepSource,
} from "../../lib/compile/step.ts";
import { fromStorage, type StorageArray } from "../../lib/core/dtype.ts";
import { sizeOf } from "../../lib/core/shape.ts";
import { type Graph, outputTypes } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { graphText } from "../../lib/ir/print.ts";
import { specText, toValueSpec, type ValueSpec } from "../../lib/ir/spec.ts";
import { type RecomputePolicy, recomputePolicies } from "../../lib/passes/remat.ts";
import { type Schedule, upTo } from "../../lib/passes/schedule.ts";
import { scheduleMaker, scheduleNames } from "../../lib/passes/schedules.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import type { Mesh } from "../../lib/tensor/mesh.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import { splitByFsdp, type ZeroLevel } from "../../lib/train/zero.ts";
import { combine, type Dense, dense, narrow } from "../conformance/dense.ts";
import { Draw } from "../conformance/draw.ts";
import { evaluate } from "../conformance/evaluate.ts";
import { drawLeaves, weighted } from "./build.ts";
import { assertSame, countOf, isTame, Meshes, seed, tolerance } from "./harness.ts";
import { type Recipe, recipes, specOf } from "./recipe.ts";
import { addStep } from "./steps.ts";

const runs = countOf(120, 3000);

interface Plan {
  readonly recipe: Recipe;
  readonly axes: Readonly<Record<string, number>>;
  readonly batch: number;
  readonly microbatches: number;
  /** What an fsdp axis splits of the parameters beside samples. */
  readonly zero: ZeroLevel;
  readonly bucketBytes: number;
  readonly prefetch: number;
  readonly regather: "segment" | "step";
  readonly schedule: string;
  /** The dim of a sample that is a sequence, for cp and tp to split; none where there is none such. */
  readonly sequence: number;
  readonly sequenceParallel: boolean;
  readonly recompute: RecomputePolicy;
  /** Of f32 programs; f64 is never narrowed. */
  readonly precision: "f32" | "bf16";
}

/** bf16 holds two to three digits: such programs show that casts and splits fit together, not how exact they are. */
function toleranceOf({ recipe: { dtype }, precision }: Plan): number {
  return dtype === "f32" && precision === "bf16" ? 0.3 : tolerance[dtype];
}

const meshes: readonly Readonly<Record<string, number>>[] = [
  { pp: 2 },
  { pp: 3 },
  { pp: 4 },
  { dp: 2 },
  { dp: 3 },
  { pp: 2, dp: 2 },
  { pp: 2, tp: 2 },
  { dp: 2, tp: 2 },
  { dp: 2, fsdp: 2 },
  { fsdp: 2 },
  { fsdp: 3 },
  { fsdp: 2, tp: 2 },
  { pp: 2, fsdp: 2 },
  { cp: 2 },
  { cp: 3 },
  { dp: 2, cp: 2 },
  { pp: 2, cp: 2 },
  { cp: 2, tp: 2 },
  { fsdp: 2, cp: 2 },
  { ep: 2 },
  { dp: 2, ep: 2 },
  { pp: 2, ep: 3 },
  { ep: 2, tp: 2 },
];

const plans: fc.Arbitrary<Plan> = fc.record({
  recipe: recipes,
  axes: fc.constantFrom(...meshes),
  batch: fc.integer({ min: 1, max: 7 }),
  microbatches: fc.integer({ min: 1, max: 4 }),
  zero: fc.constantFrom(1, 2, 3),
  bucketBytes: fc.constantFrom(0, 100, 2 ** 20),
  prefetch: fc.integer({ min: 0, max: 2 }),
  regather: fc.constantFrom("segment", "step"),
  schedule: fc.constantFrom(...scheduleNames),
  sequence: fc.integer({ min: 0, max: 1 }),
  sequenceParallel: fc.boolean(),
  recompute: fc.constantFrom(...recomputePolicies),
  precision: fc.constantFrom("f32", "bf16"),
});

function found(
  text: string,
  shapes: readonly (readonly number[])[],
  axes: Plan["axes"],
  batch: number,
  microbatches: number,
): Plan {
  const steps = text.split(", ").map((step) => {
    const [op, ...picks] = step.split(" ");
    return { op: op!, picks: [0, 1, 2, 3, 4].map((i) => Number(picks[i] ?? 0)) };
  });
  const leaves = shapes.map((shape) => ({ shape, seed: 0, places: [1, 1], reversed: false }));
  const recipe = { dtype: "f64" as const, axes: {}, leaves, steps, differentiate: false };
  const rest = {
    zero: 3,
    schedule: "gpipe",
    recompute: "none",
    sequence: 0,
    sequenceParallel: false,
    precision: "f32",
  } as const;
  const exchanges = { bucketBytes: 2 ** 20, prefetch: 0, regather: "segment" } as const;
  return { recipe, axes, batch, microbatches, ...exchanges, ...rest };
}

/** Programs that went wrong once, run first each time. */
const regressions: readonly Plan[] = [
  // A cotangent outside any module that two stages read.
  found("tanh, tanh, sub 2 2, stop", [[], []], { pp: 2 }, 1, 1),
  // A forward value of the first stage that only the second stage's backward wants split.
  found("tanh, tanh, tanh 8, tanh, div 2, tanh, tanh, tanh", [[], [1], [], []], { pp: 2, dp: 2 }, 4, 4),
  // A gradient that is partial for two samples and whole for one.
  found("tanh 4, mul 0 2, tanh, tanh, tanh", [[2], []], { dp: 2 }, 4, 3),
  // A value that crosses stages in microbatches of one sample only.
  found("tanh, broadcast 4, tanh, mul 0 3, tanh", [[]], { pp: 2, dp: 2 }, 3, 2),
];

/** The batch's tensors: the first leaf's shape for each sample, and the samples' numbers. */
function drawBatch({ recipe, batch }: Plan): { readonly x: Dense; readonly samples: Dense } {
  const shape = [batch, ...recipe.leaves[0]!.shape.slice(0, 2)];
  const x = new Draw(`batch ${recipe.leaves[0]!.seed}`).uniform(recipe.dtype, shape);
  return {
    x,
    samples: dense(
      "i32",
      [batch],
      Array.from({ length: batch }, (_, i) => i),
    ),
  };
}

/** Parameters by id: the other leaves. */
function parametersOf(recipe: Recipe): Map<string, Dense> {
  return new Map(drawLeaves(recipe).flatMap((x, i) => (i === 0 ? [] : [[`p${i}`, x]])));
}

function scheduleOf({ schedule, axes, microbatches }: Plan): Schedule {
  return scheduleMaker(schedule)(axes.pp ?? 1, microbatches);
}

/** A microbatch of n samples: loss and gradients. Steps lie on stages in order; what is outside them follows them. */
function traceMicro(plan: Plan, n: number): Graph {
  const { recipe } = plan;
  const { stages } = scheduleOf(plan);
  const b = new SymBuilder();
  const { dtype, leaves, steps } = recipe;
  const x = b.one("input", [], { name: "x", dtype, shape: [n, ...leaves[0]!.shape.slice(0, 2)] });
  const samples = b.mul(b.cast(b.one("input", [], { name: "samples", dtype: "i32", shape: [n] }), dtype), 0.1);
  const parameters = [...parametersOf(recipe)].map(([id, { shape }]) => b.one("parameter", [], { id, dtype, shape }));
  const values: Sym[] = [x, samples, ...parameters];
  steps.forEach(({ op, picks }, i) => {
    b.path = `stage${Math.floor((i * stages) / steps.length)}`;
    values.push(addStep(op, { b, dtype, values, picks }));
  });
  b.path = "";
  const loss = weighted(b, [values.at(-1)!, values.at(-2)!]);
  const grads = gradients(b, loss, b.constant(1, dtype), parameters);
  const named = parameters.map((p, i) => ({ name: `d${i + 1}`, sym: grads[i] ?? b.like(p, 0) }));
  return flatten([{ name: "loss", sym: loss }, ...named]);
}

/** How parameters lie: leaves' splits over the other axes, and more of them split by fsdp, as the level says. */
class Split {
  readonly #plan: Plan;
  readonly #layout: MeshLayout;

  constructor(plan: Plan) {
    this.#plan = plan;
    this.#layout = new MeshLayout(plan.axes);
  }

  used(id: string): ValueSpec {
    const leaf = this.#plan.recipe.leaves[Number(id.slice(1))]!;
    const axes = this.#layout.axes.filter((axis) => !["pp", "fsdp", "cp"].includes(axis));
    return toValueSpec(specOf(leaf, axes), leaf.shape.length);
  }

  state(id: string): ValueSpec {
    return splitByFsdp(this.#plan.recipe.leaves[Number(id.slice(1))]!.shape, this.used(id), this.#layout);
  }

  stored(id: string): ValueSpec {
    return this.#plan.zero === 3 ? this.state(id) : this.used(id);
  }

  /** Of a gradient's cell. */
  cell(name: string): CellSpec | null {
    const summed = this.#plan.microbatches === 1;
    if (name === "loss" || (this.#plan.zero === 1 && !summed)) return null;
    return { spec: this.state(`p${name.slice(1)}`), summed };
  }
}

/** Gives every result twice itself, and every parameter moved by its gradient, as updates are made. */
function traceClose(plan: Plan, micro: Graph): Graph {
  const b = new SymBuilder();
  const split = new Split(plan);
  const results = [...outputTypes(micro)].flatMap(([name, { dtype, shape }]) => {
    const cell = b.one("input", [], { name, dtype, shape: [...shape] });
    const twice = { name: `twice ${name}`, sym: b.mul(cell, 2) };
    if (name === "loss") return [twice];
    const id = `p${name.slice(1)}`;
    const place = (x: Sym, { dims }: ValueSpec): Sym => b.one("reshard", [x], { dims });
    const parameter = place(b.one("parameter", [], { id, dtype, shape: [...shape] }), split.state(id));
    const moved = b.add(parameter, place(cell, split.state(id)));
    return [twice, { name: `moved ${name}`, sym: place(moved, split.stored(id)) }];
  });
  return flatten(results);
}

function reference(plan: Plan, { x, samples }: ReturnType<typeof drawBatch>): Map<string, Dense> {
  const total = new Map<string, Dense>();
  const parameters = parametersOf(plan.recipe);
  let start = 0;
  for (const n of microbatchSizes(plan.batch, plan.microbatches)) {
    const part = (whole: Dense): Dense => narrow(whole, 0, start, start + n);
    const feeds = new Map([...parameters, ["x", part(x)] as const, ["samples", part(samples)] as const]);
    const add = (name: string, y: Dense, first: Dense | undefined): void => {
      const sum = total.get(name) ?? first;
      total.set(name, sum === undefined ? y : combine(sum, y, (a, c) => a + c));
    };
    for (const [name, y] of evaluate(traceMicro(plan, n), feeds)) {
      add(`twice ${name}`, { ...y, data: y.data.map((v) => 2 * v) }, undefined);
      if (name !== "loss") add(`moved ${name}`, y, parameters.get(`p${name.slice(1)}`));
    }
    start += n;
  }
  return total;
}

function compile(plan: Plan, mesh: Mesh<string>): CompiledStep {
  const { recipe, batch, microbatches } = plan;
  const schedule = scheduleOf(plan);
  const { dtype, leaves } = recipe;
  const split = new Split(plan);
  const micro = new Map(microbatchSizes(batch, microbatches).map((n) => [n, traceMicro(plan, n)]));
  const shape = leaves[0]!.shape.slice(0, 2);
  const sequence = (shape[plan.sequence] ?? 0) > 0 ? { sequence: plan.sequence } : {};
  const scatters = plan.sequenceParallel && "sequence" in sequence && mesh.layout.size("tp") > 1;
  const source: StepSource = {
    inputs: [
      { name: "x", dtype, shape, batch: true, ...sequence },
      { name: "samples", dtype: "i32", shape: [], batch: true },
    ],
    micro,
    closing: traceClose(plan, [...micro.values()][0]!),
  };
  return compileStep(source, {
    layout: mesh.layout,
    batchSize: batch,
    microbatches,
    schedule,
    recompute: plan.recompute,
    stageOfBlock: new Map(upTo(schedule.stages).map((stage) => [`stage${stage}`, stage])),
    parameterSpecs: parameterSpecs(source, (id) => split.stored(id)),
    usedSpecs: parameterSpecs(source, (id) => split.used(id)),
    cellSpecs: new Map(
      [...outputTypes([...micro.values()][0]!).keys()].flatMap((name) => {
        const spec = split.cell(name);
        return spec ? [[name, spec]] : [];
      }),
    ),
    sequenceParallel: scatters ? "on" : "off",
    passes: {
      precision: plan.precision,
      bucketBytes: plan.bucketBytes,
      prefetch: plan.prefetch,
      regather: plan.regather,
    },
  });
}

/** Places the parameters and runs the step twice, with the same bits. */
async function runOn(
  mesh: Mesh<string>,
  plan: Plan,
  { x, samples }: ReturnType<typeof drawBatch>,
): Promise<Map<string, Dense>> {
  const parameters = parametersOf(plan.recipe);
  const split = new Split(plan);
  try {
    for (const [id, { dtype, shape, data }] of parameters) {
      mesh.store.allocate(id, { dtype, shape, spec: split.stored(id) });
      mesh.store.write(id, dtype === "f64" ? Float64Array.from(data) : Float32Array.from(data));
    }
    const compiled = compile(plan, mesh);
    using loaded = new LoadedStep(mesh.engine, mesh.store, compiled);
    const results: Map<string, StorageArray>[] = [];
    for (let k = 0; k < 2; k++) results.push(await loaded.run({ x: x.data, samples: samples.data }));
    assert.deepEqual(results[1], results[0], "the second run gave other bits");
    const read = ({ name, dtype, shape }: CompiledStep["outputs"][number]): [string, Dense] => [
      name,
      dense(dtype, shape, fromStorage(dtype, results[0]!.get(name)!)),
    ];
    return new Map(compiled.outputs.map(read));
  } finally {
    for (const id of parameters.keys()) mesh.store.free(id);
  }
}

/**
 * True when the steps, which look at sizes, make the same nodes for all microbatches: else their results are others.
 */
function isOneProgram(plan: Plan): boolean {
  const [first, ...rest] = microbatchSizes(plan.batch, plan.microbatches).map((n) => {
    const { nodes } = traceMicro(plan, n);
    return nodes.map(({ op, path, inputs }) => `${op} ${path} ${inputs.join()}`).join("; ");
  });
  return rest.every((other) => other === first);
}

async function check(plan: Plan, open: Meshes): Promise<void> {
  fc.pre(plan.batch >= plan.microbatches && plan.recipe.leaves.every(({ shape }) => sizeOf(shape) > 0));
  fc.pre(isOneProgram(plan));
  const batch = drawBatch(plan);
  const expected = reference(plan, batch);
  fc.pre([...expected.values()].every(isTame));
  try {
    const found = await runOn(await open.get(plan.axes), plan, batch);
    const names = [...expected.keys()].map((name) => ({ name }));
    const own = names.map(({ name }) => found.get(name)!);
    assertSame(own, [...expected.values()], names, toleranceOf(plan), "against the reference");
    if (plan.schedule === "gpipe" && plan.recompute === "none") return;
    const same = await runOn(await open.get(plan.axes), { ...plan, schedule: "gpipe", recompute: "none" }, batch);
    for (const { name } of names) assert.deepEqual(found.get(name), same.get(name), `${name}: other bits than gpipe's`);
  } catch (error) {
    await open.close();
    const { recipe, ...how } = plan;
    const sizes = microbatchSizes(plan.batch, plan.microbatches);
    const split = new Split(plan);
    const specs = recipe.leaves.map((_, i) => specText(split.stored(`p${i}`)));
    const where = `${JSON.stringify(how)}, leaves split ${JSON.stringify(specs)}`;
    throw new Error(`${(error as Error).message}\n${where}\n${graphText(traceMicro(plan, sizes[0]!))}`, {
      cause: error,
    });
  }
}

describe("random steps", function () {
  this.timeout(Math.max(120_000, runs * 300));
  const open = new Meshes();
  after(() => open.close());

  it(`${runs} of them (seed ${seed}) over stages, batch parts and microbatches equal the reference`, async () => {
    let count = 0;
    const property = fc.asyncProperty(plans, async (plan) => {
      if (++count % 500 === 0) await open.close();
      await check(plan, open);
    });
    await fc.assert(property, {
      numRuns: runs,
      examples: regressions.map((plan): [Plan] => [plan]),
      seed,
      interruptAfterTimeLimit: runs * 280,
      markInterruptAsFailure: true,
    });
  });
});
