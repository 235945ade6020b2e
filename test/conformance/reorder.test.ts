// What a record says of reordering: along every factor that is not `ordered`, and every `unsplit` one, an op of
// reordered operands gives reordered results. Context parallelism relies on it.
import type { Params, TensorType } from "../../lib/ir/graph.ts";
import { getOp, type OpName } from "../../lib/ops/index.ts";
import { cases } from "./cases.ts";
import { assertClose } from "./compare.ts";
import { type Dense, dense } from "./dense.ts";
import { evaluateOp } from "./reference.ts";

type Names = readonly (readonly (string | null)[])[];

/** Collectives have dims of their ranks' parts; what is fed has no operands to reorder. */
const exempt = new Set<OpName>([
  "all_reduce",
  "all_gather",
  "reduce_scatter",
  "all_to_all",
  "shard_slice",
  "broadcast_from",
  "ring_shift",
  "input",
  "parameter",
  // Rows lie in the order of their experts on the way there: only there and back together they keep that of the tokens.
  "expert_sort",
  "expert_dispatch",
  "grouped_matmul",
  "grouped_matmul_grad",
  "expert_gate",
  "expert_gate_grad",
  "expert_return",
]);

/**
 * The elements along a dim in reverse, each pair exchanged once more: no order that a formula would keep by chance.
 */
function scrambled(x: Dense, dim: number): Dense {
  const n = x.shape[dim]!;
  const inner = x.shape.slice(dim + 1).reduce((a, b) => a * b, 1);
  const order = Array.from({ length: n }, (_, i) => (i % 2 === 0 ? Math.min(n - 1, n - 2 - i) : n - i));
  const valid = new Set(order).size === n && order.every((i) => i >= 0 && i < n);
  const to = valid ? order : Array.from({ length: n }, (_, i) => (i + 1) % n);
  const data = Array.from(
    x.data,
    (_, i) => x.data[i + (to[Math.floor(i / inner) % n]! - (Math.floor(i / inner) % n)) * inner]!,
  );
  return dense(x.dtype, x.shape, data);
}

function along(list: readonly Dense[], names: Names, factor: string): Dense[] {
  return list.map((x, i) => {
    return names[i]!.reduce((y, name, d) => (name === factor ? scrambled(y, d) : y), x);
  });
}

/** Sizes of all dims with a factor. */
function sizesOf(names: Names, types: readonly { readonly shape: readonly number[] }[], factor: string): number[] {
  return names.flatMap((list, i) => list.flatMap((name, d) => (name === factor ? [types[i]!.shape[d]!] : [])));
}

describe("operands in another order", function () {
  this.timeout(60_000);
  const byOp = new Map<OpName, typeof cases>();
  for (const c of cases) {
    const small = c.inputs.every((x) => x.data.length < 5000);
    if (small && !exempt.has(c.op)) byOp.set(c.op, [...(byOp.get(c.op) ?? []), c]);
  }
  for (const [op, list] of byOp) {
    it(op, () => {
      for (const c of list) {
        const types = c.inputs.map(({ dtype, shape }): TensorType => ({ dtype, shape }));
        const params = c.params as Params;
        const made = getOp(op).infer(types, params);
        const map = getOp(op).sharding.factors(types, made, params);
        const check = (inputs: Names, outputs: Names, factor: string): void => {
          const sizes = [...sizesOf(inputs, types, factor), ...sizesOf(outputs, made, factor)];
          // dims of several sizes are none that may be reordered
          if (new Set(sizes).size !== 1 || sizes[0]! < 2) return;
          const expected = along(evaluateOp(op, c.inputs, made, params), outputs, factor);
          const found = evaluateOp(op, along(c.inputs, inputs, factor), made, params);
          found.forEach((y, i) => {
            const loose = { relative: y.dtype === "bf16" ? 1e-2 : y.dtype === "f16" ? 2e-3 : 1e-5, absolute: 1e-5 };
            assertClose(y, expected[i]!, loose, `${c.name}: result ${i} along ${factor}`);
          });
        };
        const factors = new Set([...map.inputs, ...map.outputs].flat());
        for (const f of factors) if (f !== null && !map.ordered?.includes(f)) check(map.inputs, map.outputs, f);
        const { unsplit } = map;
        const more = new Set([...(unsplit?.inputs ?? []), ...(unsplit?.outputs ?? [])].flat());
        for (const f of more) if (f !== null) check(unsplit!.inputs, unsplit!.outputs, f);
      }
    });
  }
});
