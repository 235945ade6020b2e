// Steps without gradients on a placed model: the held-out loss, and functions of the model such as next-token logits.
import { expectFunction } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { ConfigError } from "../core/errors.ts";
import type { StorageArray } from "../core/dtype.ts";
import { compile } from "../compile/background.ts";
import { LoadedStep } from "../compile/load.ts";
import {
  type SequenceParallel,
  type StepInput,
  type StepSource,
  microbatchSizes,
  parameterSpecs,
} from "../compile/step.ts";
import { type Graph, outputTypes } from "../ir/graph.ts";
import { ratesOf } from "../passes/cost.ts";
import type { Precision } from "../passes/precision.ts";
import { forwardOn } from "../passes/schedules.ts";
import { Tensor, type TensorContext } from "../tensor/tensor.ts";
import { type NamedSym, SymBuilder, flatten } from "../tensor/trace.ts";
import { checkBatch, checkForwardOptions } from "./check.ts";
import { Placement, seedWords } from "./placement.ts";
import { type BatchField, type LossFunction, batchInputs, cellName, evaluationGraph, traceLoss } from "./trace.ts";

/** Settings of the steps here. */
export interface ForwardOptions {
  /** Samples of a whole batch. */
  readonly batchSize: number;
  readonly microbatches?: number;
  readonly precision?: Precision;
  /** As for trainStep(). */
  readonly sequenceParallel?: SequenceParallel;
}

/** A compiled forward step. */
export class ForwardStep implements Disposable {
  readonly #loaded: LoadedStep;
  readonly #fields: Readonly<Record<string, BatchField>>;
  readonly #samples: Int32Array;

  constructor(loaded: LoadedStep, fields: Readonly<Record<string, BatchField>>, batchSize: number) {
    this.#loaded = loaded;
    this.#fields = fields;
    this.#samples = Int32Array.from({ length: batchSize }, (_, i) => i);
  }

  /** Runs on a whole batch; resolves with the results by name. Rejects with DataError or ShapeError for a bad batch. */
  async run(batch: Readonly<Record<string, ArrayLike<number>>>): Promise<Map<string, StorageArray>> {
    const arrays = checkBatch(this.#fields, batch, this.#samples.length);
    return this.#loaded.run({ ...arrays, $samples: this.#samples, $key: seedWords(0) });
  }

  [Symbol.dispose](): void {
    this.#loaded[Symbol.dispose]();
  }
}

/** The loss of whole batches: results `loss <term>` are the weighted means. */
export async function lossStep(
  placement: Placement,
  loss: LossFunction,
  fields: Readonly<Record<string, BatchField>>,
  options: ForwardOptions,
): Promise<ForwardStep> {
  expectForward(placement, fields, options);
  expectFunction("loss", loss);
  const names = traceLoss(loss, fields, 1).terms;
  const b = new SymBuilder();
  const scalar = (name: string) => b.one("input", [], { name, dtype: "f32", shape: [] });
  const closing = flatten(
    names.map((t) => ({
      name: `loss ${t.name}`,
      sym: b.mul(b.div(scalar(cellName.sum(t.name)), b.binary("max", scalar(cellName.count(t.name)), 1)), t.weight),
    })),
  );
  return compileForward(
    placement,
    fields,
    options,
    (n) => evaluationGraph(traceLoss(loss, fields, n)),
    () => closing,
  );
}

/**
 * Any function of a batch: its results, whole, by name. They are added up over microbatches: use one for anything else.
 */
export async function forwardStep(
  placement: Placement,
  outputs: (batch: Readonly<Record<string, Tensor>>) => Readonly<Record<string, Tensor>>,
  fields: Readonly<Record<string, BatchField>>,
  options: ForwardOptions,
): Promise<ForwardStep> {
  expectForward(placement, fields, options);
  expectFunction("the function of a batch", outputs);
  const micro = (samples: number): Graph => {
    const builder = new SymBuilder();
    const context: TensorContext = { builder, name: "a traced function" };
    const batch: Record<string, Tensor> = {};
    for (const [name, { dtype, shape }] of Object.entries(fields)) {
      batch[name] = new Tensor(builder.one("input", [], { name, dtype, shape: [samples, ...shape] }), context);
    }
    return flatten(Object.entries(outputs(batch)).map(([name, t]) => ({ name, sym: t.sym })));
  };
  return compileForward(placement, fields, options, micro, sumsGraph);
}

/** Gives the sums over the microbatches as they are. */
function sumsGraph(micro: Graph): Graph {
  const b = new SymBuilder();
  const results: NamedSym[] = [...outputTypes(micro)].map(([name, { dtype, shape }]) => ({
    name,
    sym: b.one("input", [], { name, dtype, shape: [...shape] }),
  }));
  return flatten(results);
}

function expectForward(
  placement: Placement,
  fields: Readonly<Record<string, BatchField>>,
  options: ForwardOptions,
): void {
  if (!(placement instanceof Placement))
    throw new ConfigError(`a model is placed first: ${describe(placement)} is no Placement`);
  checkForwardOptions(fields, options);
}

async function compileForward(
  placement: Placement,
  fields: Readonly<Record<string, BatchField>>,
  options: ForwardOptions,
  micro: (samples: number) => Graph,
  close: (micro: Graph) => Graph,
): Promise<ForwardStep> {
  const { mesh } = placement;
  const inputs: StepInput[] = [
    ...batchInputs(fields),
    { name: "$samples", dtype: "i32", shape: [], batch: true },
    { name: "$key", dtype: "i32", shape: [3], batch: false },
  ];
  const microbatches = options.microbatches ?? 1;
  const sizes = [...new Set(microbatchSizes(options.batchSize, microbatches))];
  const graphs = new Map(sizes.map((n) => [n, micro(n)]));
  const source: StepSource = { inputs, micro: graphs, closing: close(graphs.get(sizes[0]!)!) };
  const compiled = await compile(source, {
    layout: mesh.layout,
    batchSize: options.batchSize,
    microbatches,
    schedule: forwardOn(placement.deviceOfStage, microbatches),
    stageOfBlock: placement.stages.stageOfBlock,
    parameterSpecs: parameterSpecs(source, (id) => placement.specOf(id)),
    usedSpecs: parameterSpecs(source, (id) => placement.usedSpecOf(id)),
    sequenceParallel: options.sequenceParallel ?? "auto",
    rates: ratesOf(mesh.engine.kind),
    passes: { precision: options.precision ?? "f32" },
  });
  return new ForwardStep(new LoadedStep(mesh.engine, mesh.store, compiled), fields, options.batchSize);
}
