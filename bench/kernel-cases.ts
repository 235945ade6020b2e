// The kernels that are timed: their operands for a result of so many bytes, their work, and what they should give.
import { type DType, dtypeSize, fromStorage, isFloat, toStorage } from "../lib/core/dtype.ts";
import type { Attribute } from "../lib/ir/lowering.ts";
import { elementwiseAttributes } from "../lib/ops/expression.ts";
import type { KernelName } from "../lib/ops/kernels.ts";

/** An operand that is made for the benchmark. */
export interface OperandShape {
  readonly shape: readonly number[];
  readonly strides?: readonly number[];
  /** The case's own when absent. */
  readonly dtype?: DType;
  /** Zeros when absent. */
  readonly values?: (i: number) => number;
  /** Of an output: the input that it overwrites. */
  readonly inPlace?: number;
}

/** One kernel at one size. */
export interface KernelCase {
  readonly name: string;
  readonly kernel: KernelName;
  readonly dims: string;
  readonly inputs: readonly OperandShape[];
  readonly outputs: readonly OperandShape[];
  readonly attributes?: Readonly<Record<string, number>>;
  readonly more?: readonly (number | { readonly float: number })[];
  readonly flops?: number;
  /** Bytes read and written at least. */
  readonly bytes: number;
  /** Element i of the first result, in float64. */
  readonly expected?: (i: number) => number;
}

const WIDTH = 1024;
const EPS = 1e-5;

/** Values between -1 and 1 that every float type holds about as well. */
function value(i: number): number {
  return ((i * 37) % 101) / 50 - 1;
}

function total(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0);
}

/** The operand as the type holds it. */
function held(dtype: DType, values: (i: number) => number): (i: number) => number {
  return (i) => fromStorage(dtype, toStorage(dtype, [values(i)]))[0]!;
}

/** What a case is made from. */
interface Asked {
  readonly dtype: DType;
  /** Elements of the result. */
  readonly count: number;
  /** The statistics' type. */
  readonly wide: DType;
}

/** A tensor of rows of WIDTH elements. */
function rowsOf({ count }: Asked): { rows: number; shape: readonly number[]; dims: string } {
  const rows = Math.max(1, Math.floor(count / WIDTH));
  return { rows, shape: [rows, WIDTH], dims: `[${rows}, ${WIDTH}]` };
}

function rowValues(dtype: DType, i: number): number[] {
  const [x, first] = [held(dtype, value), Math.floor(i / WIDTH) * WIDTH];
  return Array.from({ length: WIDTH }, (_, j) => x(first + j));
}

type MakeCase = (asked: Asked) => Omit<KernelCase, "name">;

const copy: MakeCase = ({ dtype, count }) => ({
  kernel: "copy",
  dims: `[${count}]`,
  inputs: [{ shape: [count], values: value }],
  outputs: [{ shape: [count] }],
  bytes: 2 * count * dtypeSize(dtype),
  expected: held(dtype, value),
});

/** The words of an expression that reads nothing from a device's table. */
export function plainWords(words: readonly Attribute[]): (number | { readonly float: number })[] {
  return words.map((word) => {
    if (typeof word === "object" && "table" in word) throw new Error("this expression reads no table");
    return word;
  });
}

/** gelu(x y + 1) y, fused. */
const elementwise: MakeCase = ({ dtype, wide, count }) => {
  const step = (op: string, inputs: readonly number[]) => ({ op, dtype: wide, inputs, attrs: {} });
  const one = { op: "constant", dtype: wide, inputs: [], attrs: { value: 1 } };
  const steps = [step("mul", [0, 1]), one, step("add", [2, 3]), step("gelu", [4]), step("mul", [5, 1])];
  const [length, ...words] = elementwiseAttributes([wide, wide], steps, [6], () => -1);
  const x = held(dtype, value);
  const gelu = (u: number) => 0.5 * u * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (u + 0.044715 * u ** 3)));
  return {
    kernel: "elementwise",
    dims: `[${count}]`,
    inputs: [
      { shape: [count], values: value },
      { shape: [count], values: (i) => value(i + 7) },
    ],
    outputs: [{ shape: [count] }],
    attributes: { count: Number(length) },
    more: plainWords(words),
    bytes: 3 * count * dtypeSize(dtype),
    expected: (i) => gelu(x(i) * x(i + 7) + 1) * x(i + 7),
  };
};

/** A sum over rows. */
const reduce: MakeCase = (asked) => {
  const { dtype, wide, count } = asked;
  const length = Math.max(1, Math.floor(count / 64));
  return {
    kernel: "reduce",
    dims: `[64, ${length}] to [1, ${length}]`,
    inputs: [{ shape: [64, length], values: value }],
    outputs: [{ shape: [1, length], dtype: wide }],
    attributes: { kind: 0 },
    bytes: 64 * length * dtypeSize(dtype),
    expected: (i) => total(Array.from({ length: 64 }, (_, r) => held(dtype, value)(r * length + i))),
  };
};

const softmax: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  return {
    kernel: "softmax",
    dims,
    inputs: [{ shape, values: value }],
    outputs: [{ shape }],
    bytes: 2 * rows * WIDTH * dtypeSize(asked.dtype),
    expected: (i) => {
      const e = rowValues(asked.dtype, i).map(Math.exp);
      return e[i % WIDTH]! / total(e);
    },
  };
};

const layerNorm: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  const { wide } = asked;
  return {
    kernel: "layer_norm",
    dims,
    inputs: [
      { shape, values: value },
      { shape: [WIDTH], dtype: wide, values: () => 2 },
      { shape: [WIDTH], dtype: wide, values: () => 1 },
    ],
    outputs: [{ shape }, { shape: [rows], dtype: wide }, { shape: [rows], dtype: wide }],
    attributes: { eps: EPS },
    bytes: 2 * rows * WIDTH * dtypeSize(asked.dtype),
    expected: (i) => {
      const x = rowValues(asked.dtype, i);
      const mean = total(x) / WIDTH;
      const variance = total(x.map((v) => (v - mean) ** 2)) / WIDTH;
      return ((x[i % WIDTH]! - mean) / Math.sqrt(variance + EPS)) * 2 + 1;
    },
  };
};

const rmsNorm: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  const { wide } = asked;
  return {
    kernel: "rms_norm",
    dims,
    inputs: [
      { shape, values: value },
      { shape: [WIDTH], dtype: wide, values: () => 2 },
    ],
    outputs: [{ shape }, { shape: [rows], dtype: wide }],
    attributes: { eps: EPS },
    bytes: 2 * rows * WIDTH * dtypeSize(asked.dtype),
    expected: (i) => {
      const x = rowValues(asked.dtype, i);
      return (2 * x[i % WIDTH]!) / Math.sqrt(total(x.map((v) => v * v)) / WIDTH + EPS);
    },
  };
};

/** Of layer norm, or with `centred` false of RMS norm. */
function normGrad(centred: boolean): MakeCase {
  return (asked) => {
    const { rows, shape, dims } = rowsOf(asked);
    const { wide } = asked;
    const [own, mean, rstd] = [{ shape, values: value }, 0.1, 1.5];
    const statistic = (number: number) => ({ shape: [rows], dtype: wide, values: () => number });
    const weights = { shape: [WIDTH], dtype: wide };
    return {
      kernel: centred ? "layer_norm_grad" : "rms_norm_grad",
      dims,
      inputs: [own, own, { ...weights, values: () => 2 }, ...(centred ? [statistic(mean)] : []), statistic(rstd)],
      outputs: [{ shape }, ...(centred ? [weights, weights] : [weights])],
      bytes: 3 * rows * WIDTH * dtypeSize(asked.dtype),
      expected: (i) => {
        const g = rowValues(asked.dtype, i).map((v) => 2 * v);
        const h = g.map((v) => (v / 2 - (centred ? mean : 0)) * rstd);
        const [meanG, meanGh] = [centred ? total(g) / WIDTH : 0, total(g.map((v, j) => v * h[j]!)) / WIDTH];
        return rstd * (g[i % WIDTH]! - meanG - h[i % WIDTH]! * meanGh);
      },
    };
  };
}

const softmaxGrad: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  return {
    kernel: "softmax_grad",
    dims,
    inputs: [
      { shape, values: value },
      { shape, values: value },
    ],
    outputs: [{ shape }],
    bytes: 3 * rows * WIDTH * dtypeSize(asked.dtype),
    expected: (i) => {
      const y = rowValues(asked.dtype, i);
      return y[i % WIDTH]! * (y[i % WIDTH]! - total(y.map((v) => v * v)));
    },
  };
};

/** A square product. */
const matmul: MakeCase = ({ dtype, count }) => {
  const n = Math.max(16, Math.round(Math.sqrt(count) / 16) * 16);
  const x = held(dtype, value);
  const shape = [1, n, n];
  return {
    kernel: "matmul",
    dims: `[${n}, ${n}] x [${n}, ${n}]`,
    inputs: [
      { shape, values: value },
      { shape, values: value },
    ],
    outputs: [{ shape }],
    attributes: { flags: 0, alpha: 1 },
    flops: 2 * n ** 3,
    bytes: 3 * n * n * dtypeSize(dtype),
    expected: (i) => total(Array.from({ length: n }, (_, k) => x(Math.floor(i / n) * n + k) * x(k * n + (i % n)))),
  };
};

const HEADS = 12;

/** Causal, 12 heads, sequences of 512. */
function attend(headDim: number, backward: boolean): MakeCase {
  return ({ dtype, wide, count }) => {
    const tokens = 512;
    const batch = Math.max(1, Math.round(count / (tokens * HEADS * headDim)));
    const shape = [batch, tokens, HEADS, headDim];
    const forward = 2 * batch * HEADS * tokens * tokens * headDim; // two products, half of each under the mask
    const own = { shape, values: value };
    const lse = { shape: [batch, HEADS, tokens], dtype: wide };
    const size = batch * tokens * HEADS * headDim * dtypeSize(dtype);
    const common = { dims: `[${shape.join(", ")}]`, attributes: { flags: 1, scale: 1 / Math.sqrt(headDim) } };
    if (!backward) {
      const outputs = [{ shape }, lse];
      return { kernel: "attention", ...common, inputs: [own, own, own], outputs, flops: forward, bytes: 4 * size };
    }
    // A log-sum-exp as large as that of a row: probabilities below 1.
    const sums = { ...lse, values: () => Math.log(tokens) + 1 };
    const inputs = [own, own, own, own, sums, own];
    const outputs = [{ shape }, { shape }, { shape }];
    return { kernel: "attention_grad", ...common, inputs, outputs, flops: 2.5 * forward, bytes: 8 * size };
  };
}

const embedding: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  const [known, id] = [4096, (i: number) => (i * 7919) % 4096];
  return {
    kernel: "embedding",
    dims,
    inputs: [
      { shape: [known, WIDTH], values: value },
      { shape: [rows], dtype: "i32", values: id },
    ],
    outputs: [{ shape }],
    attributes: { start: 0 },
    bytes: 2 * rows * WIDTH * dtypeSize(asked.dtype),
    expected: (i) => held(asked.dtype, value)(id(Math.floor(i / WIDTH)) * WIDTH + (i % WIDTH)),
  };
};

/** Gradients of rows of which every fourth has an id of another. */
const embeddingGrad: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  const known = Math.max(1, Math.floor(rows / 4));
  return {
    kernel: "embedding_grad",
    dims,
    inputs: [
      { shape, values: value },
      { shape: [rows], dtype: "i32", values: (i) => (i * 7919) % known },
    ],
    outputs: [{ shape: [known, WIDTH], dtype: asked.wide }],
    attributes: { start: 0 },
    bytes: rows * WIDTH * dtypeSize(asked.dtype) + known * WIDTH * dtypeSize(asked.wide),
  };
};

/** Of logits of this many bytes. */
const crossEntropy: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  const target = (r: number): number => (r * 13) % WIDTH;
  return {
    kernel: "cross_entropy",
    dims,
    inputs: [
      { shape, values: value },
      { shape: [rows], dtype: "i32", values: target },
    ],
    outputs: [
      { shape: [rows], dtype: asked.wide },
      { shape: [rows], dtype: asked.wide },
    ],
    attributes: { ignore: -100 },
    bytes: rows * WIDTH * dtypeSize(asked.dtype),
    expected: (r) => {
      const x = rowValues(asked.dtype, r * WIDTH);
      return Math.log(total(x.map(Math.exp))) - x[target(r)]!;
    },
  };
};

/** With the log-sum-exp of values between -1 and 1. */
const crossEntropyGrad: MakeCase = (asked) => {
  const { rows, shape, dims } = rowsOf(asked);
  const [lse, target] = [Math.log(WIDTH), (r: number) => (r * 13) % WIDTH];
  return {
    kernel: "cross_entropy_grad",
    dims,
    inputs: [
      { shape, values: value },
      { shape: [rows], dtype: "i32", values: target },
      { shape: [rows], dtype: asked.wide, values: () => lse },
      { shape: [rows], dtype: asked.wide, values: () => 1 },
    ],
    outputs: [{ shape }],
    attributes: { ignore: -100, start: 0 },
    bytes: 2 * rows * WIDTH * dtypeSize(asked.dtype),
    expected: (i) => {
      const hit = target(Math.floor(i / WIDTH)) === i % WIDTH ? 1 : 0;
      return Math.exp(held(asked.dtype, value)(i) - held(asked.wide, () => lse)(0)) - hit;
    },
  };
};

const rope: MakeCase = ({ dtype, wide, count }) => {
  const headDim = 64;
  const tokens = Math.max(1, Math.floor(count / (HEADS * headDim)));
  const shape = [1, tokens, HEADS, headDim];
  return {
    kernel: "rope",
    dims: `[${shape.join(", ")}]`,
    inputs: [
      { shape, values: value },
      { shape: [1, tokens], dtype: "i32", values: (t) => t },
      { shape: [headDim / 2], dtype: wide, values: (i) => 10_000 ** ((-2 * i) / headDim) },
    ],
    outputs: [{ shape }],
    attributes: { inverse: 0 },
    bytes: 2 * tokens * HEADS * headDim * dtypeSize(dtype),
  };
};

const squareSum: MakeCase = ({ dtype, wide, count }) => ({
  kernel: "square_sum",
  dims: `[${count}]`,
  inputs: [{ shape: [count], values: value }],
  outputs: [{ shape: [1], dtype: wide }],
  bytes: count * dtypeSize(dtype),
  expected: () => {
    const x = held(dtype, value);
    let sum = 0;
    for (let i = 0; i < count; i++) sum += x(i) ** 2;
    return sum;
  },
});

/** In place; the gate is 1. */
const adamw: MakeCase = ({ dtype, count }) => {
  const scalar = (number: number) => ({ shape: [], values: () => number });
  const tensors = [value, value, () => 0, () => 0].map((values) => ({ shape: [count], values }));
  return {
    kernel: "adamw",
    dims: `[${count}]`,
    inputs: [...tensors, ...[1e-3, 0.1, 0.001, 1].map(scalar), { shape: [1], dtype: "i32", values: () => 1 }],
    outputs: [0, 2, 3].map((inPlace) => ({ shape: [count], inPlace })),
    attributes: { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 },
    bytes: 7 * count * dtypeSize(dtype),
  };
};

const cases = {
  copy,
  elementwise,
  reduce,
  softmax,
  softmax_grad: softmaxGrad,
  layer_norm: layerNorm,
  layer_norm_grad: normGrad(true),
  rms_norm: rmsNorm,
  rms_norm_grad: normGrad(false),
  matmul,
  attention_64: attend(64, false),
  attention_128: attend(128, false),
  attention_grad_64: attend(64, true),
  attention_grad_128: attend(128, true),
  embedding,
  embedding_grad: embeddingGrad,
  cross_entropy: crossEntropy,
  cross_entropy_grad: crossEntropyGrad,
  rope,
  square_sum: squareSum,
  adamw,
} as const satisfies Readonly<Record<string, MakeCase>>;

/** Name of a case. */
export type CaseName = keyof typeof cases;

/** Names of all cases: kernels, with the size of heads behind those of attention. */
export const caseNames = Object.keys(cases) as CaseName[];

/** A kernel for a result of about so many bytes; null where it does not take the type. */
export function kernelCase(name: CaseName, dtype: DType, bytes: number): KernelCase | null {
  const own = name === "adamw" ? dtype === "f32" || dtype === "f64" : isFloat(dtype) || name === "copy";
  if (!own) return null;
  const wide = dtype === "f64" ? "f64" : isFloat(dtype) ? "f32" : dtype;
  const count = Math.max(1, Math.floor(bytes / dtypeSize(dtype)));
  return { name, ...cases[name]({ dtype, count, wide }) };
}
