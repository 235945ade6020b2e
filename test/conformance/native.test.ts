// Every case as users run it, through tensors of a mesh: on one device against the reference, with the same bits again
// and for any number of threads; and with operands split at random, against the reference.
import assert from "node:assert/strict";
import { type DType, fromStorage, type StorageArray } from "../../lib/core/dtype.ts";
import { ShapeError } from "../../lib/core/errors.ts";
import type { Params } from "../../lib/ir/graph.ts";
import type { PartitionSpec } from "../../lib/ir/spec.ts";
import { getOp, type OpName } from "../../lib/ops/index.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { Tensor } from "../../lib/tensor/tensor.ts";
import { testDevice } from "../device.ts";
import type { Case } from "./case.ts";
import { cases } from "./cases.ts";
import { assertClose, type Tolerance, toleranceOf } from "./compare.ts";
import { type Dense, dense } from "./dense.ts";
import { Draw } from "./draw.ts";
import { evaluateOp } from "./reference.ts";

/** What a user cannot write, or not read as a tensor of a mesh: these stand in compiled graphs only. */
const inserted: readonly OpName[] = [
  "all_reduce",
  "all_gather",
  "reduce_scatter",
  "all_to_all",
  "shard_slice",
  "bucket",
  "broadcast_from",
  "ring_shift",
  "expert_counts",
  "expert_arrivals",
  "expert_exchange",
  "expert_sort",
];
/** Updates take operands that are split alike. */
const alike: readonly OpName[] = ["adamw", "sgd", "assign"];

type Splits = (c: Case, operand: number) => PartitionSpec;

/** The results of all cases in one program, each on operands of its own (updates change theirs). */
async function run(mesh: Mesh<string>, list: readonly Case[], splits: Splits): Promise<StorageArray[][]> {
  const results = list.map((c) => {
    const operands = c.inputs.map((x, i) => mesh.fromData(x.data, x.shape, { dtype: x.dtype, spec: splits(c, i) }).sym);
    return mesh.builder.emit(c.op, operands, c.params as Params).map((sym) => new Tensor(sym, mesh));
  });
  const values = await mesh.evaluate(results.flat());
  let next = 0;
  return results.map((own) => own.map(() => values[next++]!.slice()));
}

function expected(c: Case): Dense[] {
  const types = getOp(c.op).infer(c.inputs, c.params as Params);
  return evaluateOp(c.op, c.inputs, types, c.params);
}

/** Dims for the axes of a mesh, drawn by the case's name. */
function drawSplits(axes: readonly string[], round: number): Splits {
  return (c, operand) => {
    const draw = new Draw(`${c.name} ${round} ${alike.includes(c.op) ? "" : operand}`);
    const dims: string[][] = c.inputs[operand]!.shape.map(() => []);
    for (const axis of axes) dims[Math.floor(draw.next() * (dims.length + 1))]?.push(axis);
    return dims;
  };
}

/**
 * Sums in another order. Partial bf16 and f16 results are rounded before they are added up, each to half a unit of its
 * size.
 */
function splitTolerance(c: Case, y: Dense): Tolerance {
  const { relative, absolute } = toleranceOf([...c.inputs, y]);
  const largest = y.data.reduce((m, v) => (Number.isFinite(v) ? Math.max(m, Math.abs(v)) : m), 0);
  const has = (dtype: DType): boolean => y.dtype !== "bool" && c.inputs.some((x) => x.dtype === dtype);
  const unit = has("bf16") ? 2 ** -7 : has("f16") ? 2 ** -10 : 0;
  return { relative: 4 * relative, absolute: Math.max(unit * largest, 4 * absolute) };
}

describe("tensors of a mesh", function () {
  this.timeout(120_000);
  const open = (axes: Readonly<Record<string, number>>, threads: number): Promise<Mesh<string>> =>
    Mesh.open({ device: testDevice, axes, threads, timeoutMs: 20_000 });
  let one: Mesh<string>;
  let threaded: Mesh<string>;
  const split: Mesh<string>[] = [];
  before(async () => {
    one = await open({}, 1);
    threaded = await open({}, 3);
    for (const axes of [{ tp: 3 }, { dp: 2, tp: 2 }]) split.push(await open(axes, 1));
  });
  after(async () => {
    for (const mesh of [one, threaded, ...split]) await mesh.close();
  });

  const check = (
    list: readonly Case[],
    found: StorageArray[][],
    tolerance: typeof splitTolerance,
    how: string,
  ): void => {
    list.forEach((c, k) => {
      expected(c).forEach((y, i) => {
        const own = dense(y.dtype, y.shape, fromStorage(y.dtype, found[k]![i]!));
        assertClose(own, y, tolerance(c, y), `${c.name}, result ${i}, ${how}`);
      });
    });
  };

  it("have 8 dims at most", () => {
    const x = one.zeros([1, 1, 1, 1, 1, 1, 1, 2]);
    assert.throws(
      () => x.reshape([1, 1, 1, 1, 1, 1, 1, 1, 2]),
      (e) => e instanceof ShapeError && /9 dims/.test(e.message),
    );
  });

  const byOp = new Map<OpName, Case[]>();
  for (const c of cases) if (!inserted.includes(c.op)) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c]);
  for (const [op, list] of byOp) {
    it(op, async () => {
      const whole: Splits = () => [];
      const found = await run(one, list, whole);
      check(list, found, (c, y) => toleranceOf([...c.inputs, y]), "on one device");
      assert.deepEqual(await run(one, list, whole), found, "a second run gives other bits");
      assert.deepEqual(await run(threaded, list, whole), found, "three threads give other bits than one");
      for (const mesh of split) {
        for (const round of [0, 1]) {
          const parts = await run(mesh, list, drawSplits(mesh.layout.axes, round));
          check(list, parts, splitTolerance, `split over ${mesh.layout}, round ${round}`);
        }
      }
    });
  }
});
