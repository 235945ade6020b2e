// Rows of a table by index, and the table's gradient.
import { statisticsDType } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import type { TensorType } from "../ir/graph.ts";
import { defineKernel } from "../ir/kernel.ts";
import type { OpRecord } from "../ir/op.ts";
import { typeText } from "../ir/print.ts";
import {
  dimFactors,
  expectDType,
  expectInputs,
  expectRank,
  expectShape,
  flatView,
  floats,
  type NoParams,
  rowsView,
  startWord,
  streamCost,
  unitStride,
} from "./define.ts";

export const embeddingKernel = defineKernel({
  name: "embedding",
  doc: `y[i,w] = table[ids[i] - start, w]; a zero row where ids[i] - start is not a row of this table (shards of a
vocabulary). ids i32 rank 1; table and y the same dtype (f32, f64, bf16, f16), unit stride in w.`,
  inputs: ["table", "ids"],
  outputs: ["y"],
  attrs: { start: "table" },
});

export const embeddingGradKernel = defineKernel({
  name: "embedding_grad",
  doc: `dtable[v,w] = sum of dy[i,w] over i, ascending, with ids[i] - start == v. dy f32, f64, bf16 or
f16; dtable f32 (f64 for f64).`,
  inputs: ["dy", "ids"],
  outputs: ["dtable"],
  attrs: { start: "table" },
});

/** Rows of the table whose gradient is made. */
export type EmbeddingGradParams = { readonly vocab: number };

/** Reads and writes as many rows as there are ids. */
function rowsCost(rows: TensorType, ids: TensorType, flops: number) {
  return streamCost([rows, ids], [rows], flops);
}

/** table[v, w], ids[...] -> rows [..., w]. An index outside the table gives a row of zeros. */
const embedding: OpRecord<NoParams> = {
  name: "embedding",
  infer(inputs) {
    expectInputs("embedding", inputs, 2);
    const [table, ids] = [inputs[0]!, inputs[1]!];
    expectRank("embedding", "the table", table, 2);
    expectDType("embedding", "the table", table, floats);
    expectDType("embedding", "the index tensor", ids, ["i32"]);
    return [{ dtype: table.dtype, shape: [...ids.shape, table.shape[1]!] }];
  },
  sharding: {
    factors(inputs) {
      const dims = dimFactors(inputs[1]!.shape.length);
      return { inputs: [["v", "w"], dims], outputs: [[...dims, "w"]], ordered: ["v"] };
    },
    linear: [0],
  },
  gradient: {
    rule: (b, { inputs, cotangents }) => {
      const [table, ids] = [inputs[0]!, inputs[1]!];
      const grad = b.one("embedding_grad", [cotangents[0]!, ids], { vocab: b.shape(table)[0]! });
      return [b.cast(grad, b.dtype(table)), null];
    },
  },
  cost: ([, ids], [y]) => rowsCost(y!, ids!, 0),
  lower(ctx) {
    const [table, ids] = [ctx.inputs[0]!, ctx.inputs[1]!];
    const start = startWord(ctx.globalInputs[0]!.shape[0]!, ctx.inputSpecs[0]!.dims[0]!);
    ctx.emit("embedding", [unitStride(ctx, table, 1), flatView(ctx, ids)], [rowsView(ctx, ctx.output(0))], [start]);
  },
};

/** dy[..., w], ids[...] -> dtable[vocab, w], in the statistics' dtype. */
const embeddingGrad: OpRecord<EmbeddingGradParams> = {
  name: "embedding_grad",
  infer(inputs, { vocab }) {
    expectInputs("embedding_grad", inputs, 2);
    const [dy, ids] = [inputs[0]!, inputs[1]!];
    expectDType("embedding_grad", "dy", dy, floats);
    expectDType("embedding_grad", "the index tensor", ids, ["i32"]);
    const width = dy.shape.at(-1);
    if (width === undefined) throw new ShapeError(`embedding_grad: dy is ${typeText(dy)}, it has no rows`);
    expectShape("embedding_grad", "dy", dy, [...ids.shape, width]);
    return [{ dtype: statisticsDType(dy.dtype), shape: [vocab, width] }];
  },
  sharding: {
    factors(inputs) {
      const dims = dimFactors(inputs[1]!.shape.length);
      return { inputs: [[...dims, "w"], dims], outputs: [["v", "w"]], ordered: ["v"] };
    },
    linear: [0],
  },
  gradient: {
    rule: (b, { inputs, cotangents }) => {
      const [dy, ids] = [inputs[0]!, inputs[1]!];
      return [b.cast(b.one("embedding", [cotangents[0]!, ids]), b.dtype(dy)), null];
    },
  },
  cost: ([dy, ids], outputs) =>
    streamCost(
      [dy!, ids!],
      outputs,
      dy!.shape.reduce((n, d) => n * d, 1),
    ),
  lower(ctx) {
    const [dy, ids] = [ctx.inputs[0]!, ctx.inputs[1]!];
    const start = startWord(ctx.params.vocab, ctx.outputSpecs[0]!.dims[0]!);
    ctx.emit("embedding_grad", [rowsView(ctx, dy), flatView(ctx, ids)], [ctx.output(0)], [start]);
  },
};

export const embeddingOps = { embedding, embedding_grad: embeddingGrad };
