// Cases of routing to experts and of what experts compute: groups of uneven and of no size, dropped choices, hostile
// counts.
import type { DType } from "../../lib/core/dtype.ts";
import { gateActivations } from "../../lib/ops/experts.ts";
import { type Case, makeCase } from "./case.ts";
import { type Dense, dense, full, roundTo } from "./dense.ts";
import { Draw } from "./draw.ts";
import { evaluateOp } from "./reference.ts";

interface Sizes {
  readonly b: number;
  readonly t: number;
  readonly k: number;
  readonly e: number;
  readonly w: number;
  readonly f: number;
}

/** Order, place and counts of drawn choices; some belong to no expert. */
function planOf(draw: Draw, { b, t, k, e }: Sizes): [ids: Dense, order: Dense, place: Dense, counts: Dense] {
  const ids = draw.ints([b, t, k], -1, e);
  const types = [ids, ids, { dtype: "i32", shape: [e] }] as const;
  const [order, place, counts] = evaluateOp("expert_sort", [ids], types, { experts: e });
  return [ids, order!, place!, counts!];
}

function routingCases(dtype: DType, sizes: Sizes): Case[] {
  const { b, t, k, e, w } = sizes;
  const draw = new Draw(`routing ${dtype} ${Object.values(sizes).join()}`);
  const [ids, order, place, counts] = planOf(draw, sizes);
  const rows = draw.uniform(dtype, [b, t, k, w]);
  const params = { axis: "ep" };
  const capacity = Math.ceil((b * t * k) / (2 * e));
  const choices = [
    makeCase("expert_sort", { experts: e }, [ids]),
    makeCase("expert_capacity", { experts: e, capacity }, [ids]),
  ];
  return [
    ...(dtype === "f32" ? choices : []),
    makeCase("expert_dispatch", params, [draw.uniform(dtype, [b, t, w]), order, place, counts]),
    makeCase("expert_dispatch", params, [rows, order, place, counts]),
    makeCase("expert_return", params, [rows, order, place, counts]),
  ];
}

function groupCases(dtype: DType, sizes: Sizes, counts: readonly number[]): Case[] {
  const { b, t, k, e, w, f } = sizes;
  const draw = new Draw(`groups ${dtype} ${Object.values(sizes).join()} ${counts.join()}`);
  const groups = dense("i32", [e], counts);
  const [x, y] = [draw.uniform(dtype, [b, t, k, w]), draw.uniform(dtype, [b, t, k, f])];
  return [
    makeCase("grouped_matmul", { turned: false }, [x, groups, draw.uniform(dtype, [e, f, w])]),
    makeCase("grouped_matmul", { turned: true }, [x, groups, draw.uniform(dtype, [e, w, f])]),
    makeCase("grouped_matmul_grad", { experts: e }, [y, x, groups]),
  ];
}

function gateCases(dtype: DType, sizes: Sizes, counts: readonly number[]): Case[] {
  const { b, t, k, e, f } = sizes;
  const groups = dense("i32", [e], counts);
  return gateActivations.flatMap((activation) => {
    const draw = new Draw(`gate ${dtype} ${activation} ${Object.values(sizes).join()}`);
    const [a, c, dy] = Array.from({ length: 3 }, () => draw.uniform(dtype, [b, t, k, f])) as [Dense, Dense, Dense];
    return [
      makeCase("expert_gate", { activation }, [a, c, groups]),
      makeCase("expert_gate_grad", { activation }, [a, c, groups, dy], { differentiate: [] }),
    ];
  });
}

function combineCases(dtype: DType, { b, t, k, w }: Sizes): Case[] {
  const draw = new Draw(`combine ${dtype} ${[b, t, k, w].join()}`);
  const x = draw.uniform(dtype, [b, t, k, w]);
  return [
    makeCase("expert_combine", {}, [x, draw.uniform(dtype, [b, t, k])]),
    makeCase("expert_combine_grad", {}, [x, draw.uniform(dtype, [b, t, w])]),
  ];
}

function topkCases(dtype: DType, shape: readonly number[], count: number): Case {
  return makeCase("topk", { count }, [new Draw(`topk ${dtype} ${shape.join()}`).uniform(dtype, shape)]);
}

function exchangeCases(): Case[] {
  const draw = new Draw("expert exchange");
  const counts = dense("i32", [3], [2, 0, 3]);
  const matrix = dense("i32", [1, 3], [2, 0, 3]);
  const rows = draw.uniform("f32", [1, 3, 2, 4]);
  const axes = ["ep"];
  return [
    makeCase("expert_counts", { axes, ranks: 1 }, [counts]),
    makeCase("expert_arrivals", { axes }, [matrix]),
    makeCase("expert_exchange", { axes, back: false, shape: [1, 3, 2, 4] }, [rows, matrix]),
    makeCase("expert_exchange", { axes, back: true, shape: [1, 3, 2, 4] }, [rows, matrix]),
  ];
}

export function expertCases(): Case[] {
  const small: Sizes = { b: 2, t: 3, k: 2, e: 3, w: 4, f: 3 };
  const large: Sizes = { b: 3, t: 37, k: 2, e: 5, w: 33, f: 49 };
  const ties = dense("f32", [3, 4], [1, 2, 2, 1, 0, 0, 0, 0, 3, Number.NaN, 3, Number.NEGATIVE_INFINITY]);
  return [
    topkCases("f64", [2, 3, 5], 2),
    topkCases("f64", [4], 1),
    topkCases("f32", [7, 33], 5),
    topkCases("f32", [0, 4], 2),
    topkCases("bf16", [5, 8], 8),
    topkCases("f16", [5, 8], 8),
    makeCase("topk", { count: 3 }, [ties]),
    ...(["f64", "f32", "bf16", "f16"] as const).flatMap((dtype) => routingCases(dtype, small)),
    ...routingCases("f32", large),
    ...routingCases("f32", { ...small, b: 0 }),
    ...groupCases("f64", small, [5, 0, 4]),
    ...groupCases("f64", { ...small, w: 2 }, [0, 0, 12]),
    ...groupCases("f32", small, [3, 4, 5]),
    ...groupCases("f32", { ...small, w: 5 }, [-7, 9, 100]),
    ...groupCases("f32", { ...small, t: 0 }, [0, 0, 0]),
    ...groupCases("f32", large, [100, 1, 0, 90, 31]),
    ...groupCases("bf16", large, [3, 60, 100, 5, 0]),
    ...groupCases("f16", large, [3, 60, 100, 5, 0]),
    ...gateCases("f64", small, [5, 0, 4]),
    ...gateCases("f32", { ...large, f: 35 }, [100, -1, 0, 90, 8]),
    ...gateCases("bf16", small, [1, 2, 9]),
    ...gateCases("f16", small, [1, 2, 9]),
    ...combineCases("f64", small),
    ...combineCases("f32", large),
    ...combineCases("bf16", { ...small, w: 40 }),
    ...combineCases("f16", { ...small, w: 40 }),
    ...combineCases("f32", { ...small, k: 1, b: 0 }),
    makeCase("expert_combine", {}, [full("f32", [1, 1, 2, 3], roundTo("f32", 0.1)), full("f32", [1, 1, 2], 0.5)]),
    ...exchangeCases(),
  ];
}
