// Layers: projections with named dims, embeddings, norms, dropout, activations.
import { describe } from "../core/describe.ts";
import { expectInteger, expectObject, expectText } from "../core/check.ts";
import { siteHash } from "../core/random.ts";
import { ConfigError, ShapeError } from "../core/errors.ts";
import { type Shape, shapeText } from "../core/shape.ts";
import { embedding, layerNorm, rmsNorm } from "../tensor/functions.ts";
import { type Initial, Parameter } from "../tensor/parameter.ts";
import { Tensor, type TensorContext } from "../tensor/tensor.ts";
import type { SymBuilder } from "../tensor/trace.ts";
import type { Activation } from "./config.ts";
import { Module } from "./module.ts";

const zeros: Initial = { kind: "constant", value: 0 };
const ones: Initial = { kind: "constant", value: 1 };

/** What a Projection is made from. Dims have names, so that heads need no reshapes of split dims. */
export interface ProjectionOptions {
  /** The weight's dims in the order of its elements: "w c h d". */
  readonly dims: string;
  /** Those among them that are summed over, the last dims of the argument in this order: "w". */
  readonly over: string;
  readonly sizes: Readonly<Record<string, number>>;
  /** Mesh axes that split dims by name: { h: "tp" }. */
  readonly split?: Readonly<Record<string, string>>;
  /** The weight's shape in files. */
  readonly stored?: Shape;
  /** Whether there is a bias, of the dims that are not summed over. */
  readonly bias?: boolean;
  readonly initial: Initial;
  /** A weight that another module owns (a tied head). */
  readonly weight?: Parameter;
}

/**
 * y[..., rest] = sum over `over` of x[..., over] weight[dims] (+ bias[rest]); `rest` are the dims left, in their order.
 */
export class Projection extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter | undefined;
  readonly #over: readonly string[];
  readonly #dims: readonly string[];

  constructor(options: ProjectionOptions) {
    super();
    expectObject("a projection's options", options);
    expectText("a projection's dims", options.dims);
    expectText("the dims that a projection sums over", options.over);
    expectObject("a projection's sizes", options.sizes);
    this.#dims = words(options.dims);
    this.#over = words(options.over);
    this.weight = options.weight ?? this.#parameter(options, this.#dims, options.initial, options.stored);
    const rest = this.#rest();
    const stored = [rest.reduce((n, name) => n * options.sizes[name]!, 1)];
    this.bias = options.bias ? this.#parameter(options, rest, zeros, stored) : undefined;
  }

  #parameter(
    { sizes, split }: ProjectionOptions,
    dims: readonly string[],
    initial: Initial,
    stored?: Shape,
  ): Parameter {
    return new Parameter({
      shape: dims.map((name) => sizes[name]!),
      initial,
      spec: dims.map((name) => split?.[name] ?? null),
      ...(stored ? { stored: { shape: stored } } : {}),
    });
  }

  #rest(): string[] {
    return this.#dims.filter((name) => !this.#over.includes(name));
  }

  /** Throws ShapeError when x's last dims are not those summed over. */
  forward(x: Tensor): Tensor {
    const sizes = this.#over.map((name) => this.weight.shape[this.#dims.indexOf(name)]!);
    const lead = x.rank - sizes.length;
    if (lead < 0 || sizes.some((n, i) => x.shape[lead + i] !== n)) {
      throw new ShapeError(`${this.path}: takes [..., ${sizes.join(", ")}], got ${shapeText(x.shape)}`);
    }
    const rows = Array.from({ length: lead }, (_, i) => `row${i}`);
    const left = [...rows, ...this.#over].join(" ");
    const result = [...rows, ...this.#rest()].join(" ");
    const y = x.einsum(`${left}, ${this.#dims.join(" ")} -> ${result}`, this.weight);
    return this.bias ? y.add(this.bias) : y;
  }
}

function words(text: string): string[] {
  return text.split(" ").filter((word) => word !== "");
}

/** What a Linear may be told. */
export interface LinearOptions {
  /** Default true. */
  readonly bias?: boolean;
  /** The mesh axis that splits the outputs, or the inputs. */
  readonly split?: { readonly outputs?: string; readonly inputs?: string };
  /** Fresh weights; uniform within 1 / sqrt(inputs) of zero by default. */
  readonly initial?: Initial;
}

/** y[..., outputs] = x[..., inputs] weight^T + bias; the weight is [outputs, inputs], as PyTorch's. */
export class Linear extends Projection {
  constructor(inputs: number, outputs: number, options: LinearOptions = {}) {
    expectInteger("a layer's inputs", inputs, 0);
    expectInteger("a layer's outputs", outputs, 0);
    expectObject("a layer's options", options);
    const bound = 1 / Math.sqrt(inputs);
    super({
      dims: "outputs inputs",
      over: "inputs",
      sizes: { inputs, outputs },
      split: options.split ?? {},
      bias: options.bias ?? true,
      initial: options.initial ?? { kind: "uniform", low: -bound, high: bound },
    });
  }
}

/** Rows of a table [count, width] by index. */
export class Embedding extends Module {
  readonly weight: Parameter;

  /** @param split the mesh axis that splits the rows */
  constructor(count: number, width: number, initial: Initial = { kind: "normal", std: 1 }, split?: string) {
    super();
    this.weight = new Parameter({ shape: [count, width], initial, spec: [split ?? null, null] });
  }

  /** ids i32, any shape -> [...ids, width]. */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}

/** Layer normalisation over the last dim, with gain and bias. */
export class LayerNorm extends Module {
  readonly weight: Parameter;
  readonly bias: Parameter;
  readonly eps: number;

  constructor(width: number, eps = 1e-5) {
    super();
    this.weight = new Parameter({ shape: [width], initial: ones });
    this.bias = new Parameter({ shape: [width], initial: zeros });
    this.eps = eps;
  }

  forward(x: Tensor): Tensor {
    return layerNorm(x, this.weight, this.bias, this.eps);
  }
}

/** Root-mean-square normalisation over the last dim, with gain. */
export class RMSNorm extends Module {
  readonly weight: Parameter;
  readonly eps: number;

  constructor(width: number, eps = 1e-6) {
    super();
    this.weight = new Parameter({ shape: [width], initial: ones });
    this.eps = eps;
  }

  forward(x: Tensor): Tensor {
    return rmsNorm(x, this.weight, this.eps);
  }
}

/** Inputs that a training step gives besides the batch. */
export const stepInput = {
  /** i32 [3]: seed low, seed high, step. */
  key: "$key",
  /** i32 [samples]: each sample's index in the global batch. */
  samples: "$samples",
} as const;

/**
 * In training, zeroes elements with probability p and scales the others by 1 / (1 - p). Dim 0 of the argument is the
 * sample: what is dropped depends on seed, step, the module's path, the call's ordinal and the element's place in the
 * global batch.
 */
export class Dropout extends Module {
  readonly probability: number;
  readonly #calls = new WeakMap<SymBuilder, number>();

  constructor(probability: number) {
    super();
    if (!(typeof probability === "number" && probability >= 0 && probability < 1)) {
      throw new ConfigError(
        `the probability of dropout is ${describe(probability)}; it must be at least 0 and below 1`,
      );
    }
    this.probability = probability;
  }

  forward(x: Tensor): Tensor {
    if (this.probability === 0 || !this.training) return x;
    if (x.rank === 0) throw new ShapeError(`${this.path}: dropout of a scalar; dim 0 must be the sample`);
    const { builder } = x.context;
    const ordinal = this.#calls.get(builder) ?? 0;
    this.#calls.set(builder, ordinal + 1);
    const operands = [
      input(x.context, stepInput.key, [3]).sym,
      input(x.context, stepInput.samples, x.shape.slice(0, 1)).sym,
    ];
    const site = siteHash(`${this.path}#${ordinal}`);
    const params = { kind: "uniform", dtype: "f32", shape: [...x.shape], site, indexed: [0] };
    const kept = x.wrap(builder.one("random", operands, params)).ge(this.probability);
    return kept.where(x.mul(1 / (1 - this.probability)), 0);
  }
}

function input(context: TensorContext, name: string, shape: Shape): Tensor {
  return new Tensor(context.builder.one("input", [], { name, dtype: "i32", shape: [...shape] }), context);
}

/** An activation by Hugging Face's name. */
export function activate(x: Tensor, activation: Activation): Tensor {
  switch (activation) {
    case "gelu_new":
      return x.gelu("tanh");
    case "gelu":
      return x.gelu("erf");
    case "relu":
      return x.relu();
    case "silu":
      return x.silu();
  }
}
