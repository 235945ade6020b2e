// Reference evaluation of the ops that networks need as one: norms, losses, attention, optimizers, random numbers.
import type { TensorType } from "../../lib/ir/graph.ts";
import type { OpParams } from "../../lib/ops/index.ts";
import { at, build, type Dense, dense, full, indices, offsetOf, roundTo } from "./dense.ts";
import type { Evaluation } from "./reference.ts";

type Rows = readonly (readonly number[])[];

/** The rows of the last dim. */
function rowsOf(x: Dense): Rows {
  const n = x.shape.at(-1)!;
  const count = x.shape.slice(0, -1).reduce((a, b) => a * b, 1);
  return Array.from({ length: count }, (_, r) => x.data.slice(r * n, (r + 1) * n));
}

function mean(row: readonly number[]): number {
  return row.reduce((a, b) => a + b, 0) / row.length;
}

function like(type: TensorType, rows: Rows | readonly number[]): Dense {
  return dense(type.dtype, type.shape, (rows as readonly (number | readonly number[])[]).flat());
}

function layerNorm({ inputs, outputs, params: { eps } }: Evaluation<OpParams["layer_norm"]>): Dense[] {
  const rows = rowsOf(inputs[0]!);
  const [w, b] = [inputs[1]!.data, inputs[2]!.data];
  const means = rows.map(mean);
  const rstds = rows.map((row, r) => 1 / Math.sqrt(mean(row.map((v) => (v - means[r]!) ** 2)) + eps));
  const y = rows.map((row, r) => row.map((v, i) => (v - means[r]!) * rstds[r]! * w[i]! + b[i]!));
  return [like(outputs[0]!, y), like(outputs[1]!, means), like(outputs[2]!, rstds)];
}

/** Sums columns of rows; `n` says how many there are when there is no row. */
function columnSums(rows: Rows, n: number): number[] {
  return Array.from({ length: n }, (_, i) => rows.reduce((sum, row) => sum + row[i]!, 0));
}

function layerNormGrad({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [dy, x] = [rowsOf(inputs[0]!), rowsOf(inputs[1]!)];
  const [w, means, rstds] = [inputs[2]!.data, inputs[3]!.data, inputs[4]!.data];
  const hat = x.map((row, r) => row.map((v) => (v - means[r]!) * rstds[r]!));
  const dx = dy.map((row, r) => {
    const g = row.map((v, i) => v * w[i]!);
    const along = mean(g.map((v, i) => v * hat[r]![i]!));
    return g.map((v, i) => rstds[r]! * (v - mean(g) - hat[r]![i]! * along));
  });
  const dw = columnSums(
    dy.map((row, r) => row.map((v, i) => v * hat[r]![i]!)),
    w.length,
  );
  return [like(outputs[0]!, dx), like(outputs[1]!, dw), like(outputs[2]!, columnSums(dy, w.length))];
}

function rmsNorm({ inputs, outputs, params: { eps } }: Evaluation<OpParams["rms_norm"]>): Dense[] {
  const rows = rowsOf(inputs[0]!);
  const w = inputs[1]!.data;
  const rstds = rows.map((row) => 1 / Math.sqrt(mean(row.map((v) => v * v)) + eps));
  return [
    like(
      outputs[0]!,
      rows.map((row, r) => row.map((v, i) => v * rstds[r]! * w[i]!)),
    ),
    like(outputs[1]!, rstds),
  ];
}

function rmsNormGrad({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  const [dy, x] = [rowsOf(inputs[0]!), rowsOf(inputs[1]!)];
  const [w, rstds] = [inputs[2]!.data, inputs[3]!.data];
  const dx = dy.map((row, r) => {
    const g = row.map((v, i) => v * w[i]!);
    const along = mean(g.map((v, i) => v * x[r]![i]!));
    return g.map((v, i) => rstds[r]! * v - rstds[r]! ** 3 * x[r]![i]! * along);
  });
  const dw = columnSums(
    dy.map((row, r) => row.map((v, i) => v * x[r]![i]! * rstds[r]!)),
    w.length,
  );
  return [like(outputs[0]!, dx), like(outputs[1]!, dw)];
}

export const normReference = {
  layer_norm: layerNorm,
  layer_norm_grad: layerNormGrad,
  rms_norm: rmsNorm,
  rms_norm_grad: rmsNormGrad,
};

function logSumExp(row: readonly number[]): number {
  const max = Math.max(...row);
  return max === Number.NEGATIVE_INFINITY ? max : max + Math.log(row.reduce((sum, v) => sum + Math.exp(v - max), 0));
}

function crossEntropy({ inputs, outputs, params: { ignore } }: Evaluation<OpParams["cross_entropy"]>): Dense[] {
  const rows = rowsOf(inputs[0]!);
  const targets = inputs[1]!.data;
  const lse = rows.map(logSumExp);
  const nll = rows.map((row, r) => {
    const logit = row[targets[r]!];
    return targets[r] === ignore || logit === undefined ? 0 : lse[r]! - logit;
  });
  return [like(outputs[0]!, nll), like(outputs[1]!, lse)];
}

function crossEntropyPartial(evaluation: Evaluation<OpParams["cross_entropy"]>): Dense[] {
  const { inputs, outputs, params, inputStarts } = evaluation;
  const rows = rowsOf(inputs[0]!);
  const start = inputStarts[0]!.at(-1)!;
  const [targets, max] = [inputs[1]!.data, inputs[2]!.data];
  const sums = rows.map((row, r) => row.reduce((sum, v) => sum + Math.exp(v - max[r]!), 0));
  const hits = rows.map((row, r) => (targets[r] === params.ignore ? 0 : (row[targets[r]! - start] ?? 0)));
  return [like(outputs[0]!, sums), like(outputs[1]!, hits)];
}

function crossEntropyGrad(evaluation: Evaluation<OpParams["cross_entropy"]>): Dense[] {
  const { inputs, outputs, params, inputStarts } = evaluation;
  const rows = rowsOf(inputs[0]!);
  const start = inputStarts[0]!.at(-1)!;
  const [targets, lse, dnll] = [inputs[1]!.data, inputs[2]!.data, inputs[3]!.data];
  const d = rows.map((row, r) =>
    row.map((v, i) => {
      const hit = i + start === targets[r] ? 1 : 0;
      return targets[r] === params.ignore ? 0 : (Math.exp(v - lse[r]!) - hit) * dnll[r]!;
    }),
  );
  return [like(outputs[0]!, d)];
}

export const lossReference = {
  cross_entropy: crossEntropy,
  cross_entropy_partial: crossEntropyPartial,
  cross_entropy_grad: crossEntropyGrad,
};

/** Adds to one element of a tensor under construction. */
function addAt(to: Dense, index: readonly number[], value: number): void {
  (to.data as number[])[offsetOf(to.shape, index)]! += value;
}

type Attention = Evaluation<OpParams["attention"]>;

/** Scaled scores of one query row (-inf where the mask hides the key); `fixed` operands come before the marks. */
function scoresOf({ inputs, params }: Attention, fixed: number, b: number, t: number, g: number, r: number): number[] {
  const [q, k] = [inputs[0]!, inputs[1]!];
  const marks = inputs.slice(fixed);
  const positions = params.positions ? marks.splice(0, 2) : null;
  const segments = params.segments ? marks : null;
  return Array.from({ length: k.shape[1]! }, (_, s) => {
    const [pq, pk] = positions === null ? [t, s] : [at(positions[0]!, [b, t]), at(positions[1]!, [b, s])];
    if (params.causal && pk > pq) return Number.NEGATIVE_INFINITY;
    if (segments !== null && at(segments[0]!, [b, t]) !== at(segments[1]!, [b, s])) return Number.NEGATIVE_INFINITY;
    let dot = 0;
    for (let d = 0; d < q.shape[4]!; d++) dot += at(q, [b, t, g, r, d]) * at(k, [b, s, g, d]);
    return params.scale * dot;
  });
}

/** exp(scores - lse), zero in a row without visible keys. */
function probabilities(scores: readonly number[], lse: number): number[] {
  return scores.map((v) => (v === Number.NEGATIVE_INFINITY ? 0 : Math.exp(v - lse)));
}

function attention(evaluation: Attention): Dense[] {
  const { inputs, outputs } = evaluation;
  const [q, , v] = inputs as readonly [Dense, Dense, Dense];
  const out = full(outputs[0]!.dtype, outputs[0]!.shape, 0);
  const lse = full(outputs[1]!.dtype, outputs[1]!.shape, 0);
  for (const [b, t, g, r] of indices(q.shape.slice(0, 4)) as Iterable<readonly [number, number, number, number]>) {
    const scores = scoresOf(evaluation, 3, b, t, g, r);
    const sum = logSumExp(scores);
    addAt(lse, [b, g, r, t], sum);
    probabilities(scores, sum).forEach((p, s) => {
      for (let e = 0; e < v.shape[3]!; e++) addAt(out, [b, t, g, r, e], p * at(v, [b, s, g, e]));
    });
  }
  return [out, lse];
}

function attentionGrad(evaluation: Attention): Dense[] {
  const { inputs, outputs, params } = evaluation;
  const [q, k, v, out, lse, dout] = inputs as readonly [Dense, Dense, Dense, Dense, Dense, Dense];
  const [dq, dk, dv] = outputs.map(({ shape }) => full("f64", shape, 0)) as [Dense, Dense, Dense];
  const width = q.shape[4]!;
  for (const [b, t, g, r] of indices(q.shape.slice(0, 4)) as Iterable<readonly [number, number, number, number]>) {
    const p = probabilities(scoresOf(evaluation, 6, b, t, g, r), at(lse, [b, g, r, t]));
    const d = Array.from({ length: v.shape[3]! }, (_, e) => at(dout, [b, t, g, r, e]));
    const delta = d.reduce((sum, x, e) => sum + x * at(out, [b, t, g, r, e]), 0);
    p.forEach((ps, s) => {
      const dp = d.reduce((sum, x, e) => sum + x * at(v, [b, s, g, e]), 0);
      const ds = ps * (dp - delta) * params.scale;
      d.forEach((x, e) => {
        addAt(dv, [b, s, g, e], ps * x);
      });
      for (let i = 0; i < width; i++) {
        addAt(dq, [b, t, g, r, i], ds * at(k, [b, s, g, i]));
        addAt(dk, [b, s, g, i], ds * at(q, [b, t, g, r, i]));
      }
    });
  }
  return [dq, dk, dv].map((x, i) => ({ ...x, dtype: outputs[i]!.dtype }));
}

function rope({ inputs, outputs, params }: Evaluation<OpParams["rope"]>): Dense[] {
  const [x, positions, frequencies] = inputs as readonly [Dense, Dense, Dense];
  const half = frequencies.data.length;
  return [
    build(x.dtype, outputs[0]!.shape, (index) => {
      const i = index.at(-1)!;
      const head = index.slice(0, -1);
      const angle = at(positions, index.slice(0, 2)) * frequencies.data[i % half]! * (params.inverse ? -1 : 1);
      const other = at(x, [...head, (i + half) % (2 * half)]);
      return at(x, index) * Math.cos(angle) + (i < half ? -other : other) * Math.sin(angle);
    }),
  ];
}

export const attentionReference = { attention, attention_grad: attentionGrad, rope };

function adamw({ inputs, params }: Evaluation<OpParams["adamw"]>): Dense[] {
  const [p, grad, m, v] = inputs as readonly [Dense, Dense, Dense, Dense];
  const [lr, c1, c2, scale, gate] = inputs.slice(4).map((x) => x.data[0]!) as [number, number, number, number, number];
  if (gate !== 1) return [p, m, v];
  const { beta1, beta2, eps, weightDecay } = params;
  const g = grad.data.map((x) => x * scale);
  const m2 = m.data.map((x, i) => x + (1 - beta1) * (g[i]! - x));
  const v2 = v.data.map((x, i) => beta2 * x + (1 - beta2) * g[i]! ** 2);
  const p2 = p.data.map((x, i) => x * (1 - lr * weightDecay) - ((lr / c1) * m2[i]!) / (Math.sqrt(v2[i]! / c2) + eps));
  return [
    { ...p, data: p2 },
    { ...m, data: m2 },
    { ...v, data: v2 },
  ];
}

function sgd({ inputs, params: { momentum, weightDecay, nesterov } }: Evaluation<OpParams["sgd"]>): Dense[] {
  const [p, grad, buf] = inputs as readonly [Dense, Dense, Dense];
  const [lr, scale, gate] = inputs.slice(3).map((x) => x.data[0]!) as [number, number, number];
  if (gate !== 1) return [p, buf];
  const g = grad.data.map((x, i) => x * scale + weightDecay * p.data[i]!);
  const buf2 = buf.data.map((x, i) => momentum * x + g[i]!);
  const p2 = p.data.map((x, i) => x - lr * (nesterov ? g[i]! + momentum * buf2[i]! : buf2[i]!));
  return [
    { ...p, data: p2 },
    { ...buf, data: buf2 },
  ];
}

function squareSum({ inputs, outputs }: Evaluation<unknown>): Dense[] {
  return [like(outputs[0]!, [inputs[0]!.data.reduce((sum, x) => sum + x * x, 0)])];
}

export const optimizerReference = { adamw, sgd, square_sum: squareSum };

function multiply(a: number, b: number): readonly [number, number] {
  const product = BigInt(a) * BigInt(b);
  return [Number(product >> 32n), Number(product & 0xffffffffn)];
}

/** Philox4x32-10 (Salmon et al., 2011): four 32-bit words from a counter and a key. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [c0, c1, c2, c3] = counter.map((x) => x >>> 0) as [number, number, number, number];
  let [k0, k1] = key.map((x) => x >>> 0) as [number, number];
  for (let round = 0; round < 10; round++) {
    const [hi0, lo0] = multiply(0xd2511f53, c0);
    const [hi1, lo1] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(hi1 ^ c1 ^ k0) >>> 0, lo1, (hi0 ^ c3 ^ k1) >>> 0, lo0];
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}

function uniform(bits: number): number {
  return (bits >>> 8) * 2 ** -24;
}

function normal(words: readonly number[], lane: number): number {
  const pair = lane < 2 ? 0 : 2;
  const radius = Math.sqrt(-2 * Math.log(1 - uniform(words[pair]!)));
  const angle = 2 * Math.PI * uniform(words[pair + 1]!);
  return radius * (lane % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
}

export function randomReference({ inputs, outputs, params, outputStarts }: Evaluation<OpParams["random"]>): Dense[] {
  const [low, high, step] = inputs[0]!.data as readonly number[] as readonly [number, number, number];
  const { kind, dtype, shape, site } = params;
  return [
    build(dtype, outputs[0]!.shape, (index) => {
      const linear = index.reduce((sum, i, d) => {
        const given = params.indexed.indexOf(d);
        const own = given >= 0 ? inputs[given + 1]!.data[i]! : i + outputStarts[0]![d]!;
        return sum * shape[d]! + own;
      }, 0);
      const group = Math.floor(linear / 4);
      const words = philox([group % 2 ** 32, Math.floor(group / 2 ** 32), site, step], [low, high]);
      const lane = linear % 4;
      if (kind === "bits") return words[lane]! | 0;
      return roundTo(dtype, kind === "uniform" ? uniform(words[lane]!) : normal(words, lane));
    }),
  ];
}
