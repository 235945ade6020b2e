// Random programs: drawn graphs with their gradients, split at random over a mesh, must give what the reference gives.
import fc from "fast-check";
import { sizeOf } from "../../lib/core/shape.ts";
import type { Graph } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { graphText } from "../../lib/ir/print.ts";
import type { ValueSpec } from "../../lib/ir/spec.ts";
import { fuse } from "../../lib/passes/fuse.ts";
import { Engine } from "../../lib/runtime/engine.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";
import { testDevice } from "../device.ts";
import { assertClose } from "../conformance/compare.ts";
import type { Dense } from "../conformance/dense.ts";
import { runOnDevices } from "../conformance/device.ts";
import { Draw } from "../conformance/draw.ts";
import { evaluate } from "../conformance/evaluate.ts";

/** One drawn step: which op, on which of the values made so far, and a number that settles its params. */
interface Step {
  readonly kind: number;
  readonly left: number;
  readonly right: number;
  readonly detail: number;
}

/** A drawn program: shapes of its inputs and steps. */
interface Recipe {
  readonly shapes: readonly (readonly number[])[];
  readonly steps: readonly Step[];
  readonly placement: readonly number[];
}

const recipe: fc.Arbitrary<Recipe> = fc.record({
  shapes: fc.array(fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 3 }), {
    minLength: 1,
    maxLength: 3,
  }),
  steps: fc.array(fc.record({ kind: fc.nat(99), left: fc.nat(20), right: fc.nat(20), detail: fc.nat(1000) }), {
    minLength: 1,
    maxLength: 10,
  }),
  placement: fc.array(fc.nat(99), { minLength: 12, maxLength: 12 }),
});

const smooth = ["sin", "tanh", "sigmoid", "gelu", "silu", "neg", "abs"] as const;
const pairs = ["add", "sub", "mul", "max", "min"] as const;
const maxSize = 200;
/** More for a longer search: MESHWORK_FUZZ_RUNS, with another MESHWORK_FUZZ_SEED. */
const runs = Number(process.env.MESHWORK_FUZZ_RUNS ?? 60);

/** x contracted with y over their first dims of one size, or their outer product. */
function contract(b: SymBuilder, x: Sym, y: Sym): Sym {
  const [left, right] = [b.shape(x), b.shape(y)];
  const names = left.map((_, d) => `a${d}`);
  const others = right.map((_, d) => `b${d}`);
  const shared = left.findIndex((n) => right.includes(n));
  if (shared >= 0) others[right.indexOf(left[shared]!)] = names[shared]!;
  const out = [...names, ...others].filter((label) => !(names.includes(label) && others.includes(label)));
  return b.einsum(`${names.join(" ")}, ${others.join(" ")} -> ${out.join(" ")}`, x, y);
}

function reshaped(b: SymBuilder, x: Sym, detail: number): Sym {
  const shape = b.shape(x);
  if (detail % 2 === 0 && shape.length > 1) return b.reshape(x, [shape[0]! * shape[1]!, ...shape.slice(2)]);
  const split = shape.findIndex((n) => n % 2 === 0 && n > 0);
  if (split < 0) return b.reshape(x, [...shape, 1]);
  return b.reshape(x, [...shape.slice(0, split), 2, shape[split]! / 2, ...shape.slice(split + 1)]);
}

/** The values of one step; a step that does not fit its operands gives its left operand. */
function apply(b: SymBuilder, { kind, detail }: Step, x: Sym, y: Sym): Sym {
  const shape = b.shape(x);
  const dim = shape.length === 0 ? 0 : detail % shape.length;
  const makers: readonly (() => Sym)[] = [
    () => b.unary(smooth[detail % smooth.length]!, x),
    () => b.unary(smooth[detail % smooth.length]!, x),
    () => b.binary(pairs[detail % pairs.length]!, x, b.broadcastTo(b.sum(y), shape)),
    () => (b.shape(y).join() === shape.join() ? b.binary(pairs[detail % pairs.length]!, x, y) : x),
    () => b.reduce((["sum", "max", "min"] as const)[detail % 3]!, x, dim, detail % 2 === 0),
    () =>
      b.transpose(
        x,
        shape.map((_, d) => (d + 1 + detail) % shape.length),
      ),
    () => b.slice(x, dim, shape[dim]! > 1 ? 1 : 0, shape[dim]!),
    () => b.pad(x, dim, detail % 2, detail % 3),
    () => b.concat([x, x], dim),
    () => reshaped(b, x, detail),
    () => b.broadcastTo(x, [2 + (detail % 2), ...shape]),
    () => contract(b, x, y),
    () => contract(b, x, y),
    () => b.unary("softmax", x),
    () => b.one("rms_norm", [x, b.constant(0.5, "f64", shape.slice(-1))], { eps: 1e-3 }),
  ];
  const index = kind % makers.length;
  // Those between work on a dim, which a scalar has not.
  const made = shape.length > 0 || index < 4 ? makers[index]!() : x;
  const size = sizeOf(b.shape(made));
  return size > maxSize || size === 0 || b.shape(made).length > 4 ? x : made;
}

interface Program {
  readonly graph: Graph;
  readonly feeds: ReadonlyMap<string, Dense>;
}

function build({ shapes, steps }: Recipe): Program {
  const b = new SymBuilder();
  const draw = new Draw("random programs");
  const feeds = new Map(shapes.map((shape, i): [string, Dense] => [`x${i}`, draw.uniform("f64", shape, -1, 1)]));
  const inputs = shapes.map((shape, i) => b.one("input", [], { name: `x${i}`, dtype: "f64", shape }));
  const values = [...inputs];
  for (const step of steps) {
    const [x, y] = [values[values.length - 1 - (step.left % values.length)]!, values[step.right % values.length]!];
    // Bounded, so that errors cannot grow from step to step.
    values.push(b.unary("sin", apply(b, step, x, y)));
  }
  const last = values.at(-1)!;
  const loss = b.sum(last);
  const grads = gradients(b, loss, b.constant(1, "f64"), inputs);
  const outputs = [
    { name: "y", sym: last },
    ...grads.flatMap((sym, i) => (sym === null ? [] : [{ name: `g${i}`, sym }])),
  ];
  return { graph: flatten(outputs), feeds };
}

/** Splits fed values by drawn numbers: each axis over one dim, or over none. */
function place({ shapes, placement }: Recipe, axes: readonly string[]): Map<string, ValueSpec> {
  let next = 0;
  return new Map(
    shapes.map((shape, i) => {
      const dims: string[][] = shape.map(() => []);
      for (const axis of axes) dims[placement[next++ % placement.length]! % (shape.length + 1)]?.push(axis);
      return [`x${i}`, { dims, partial: {} }];
    }),
  );
}

describe("random programs", function () {
  this.timeout(60_000 + 1000 * runs);
  for (const axes of [{ tp: 2 }, { tp: 3 }, { dp: 2, tp: 2 }]) {
    const layout = new MeshLayout(axes);
    it(`give on ${layout} what the reference gives`, async () => {
      using engine = new Engine({ device: testDevice, devices: layout.devices, threads: 1 });
      await fc.assert(
        fc.asyncProperty(recipe, async (drawn) => {
          const { graph, feeds } = build(drawn);
          const specs = place(drawn, layout.axes);
          const expected = [...evaluate(graph, feeds).values()];
          const results = await runOnDevices(engine, layout, graph, feeds, specs, 2, (g) => fuse(g));
          for (const own of results) {
            expected.forEach((y, i) => {
              assertClose(
                own[i]!,
                y,
                { relative: 1e-7, absolute: 1e-8 },
                `${JSON.stringify([...specs])}\n${graphText(graph)}`,
              );
            });
          }
        }),
        { numRuns: runs, seed: Number(process.env.MESHWORK_FUZZ_SEED ?? 7) },
      );
    });
  }
});
