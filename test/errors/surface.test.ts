// Every function, class and method of the public API with values of the wrong type: errors of meshwork's own kinds, no
// others.
import assert from "node:assert/strict";
import { MeshworkError } from "../../lib/core/errors.ts";
import * as api from "../../lib/index.ts";
import { smallModel, smallOptions } from "./small.ts";

const values: readonly unknown[] = [
  undefined,
  null,
  0,
  -1,
  1.5,
  Number.NaN,
  "x",
  "",
  true,
  [],
  {},
  () => 1,
  Symbol("s"),
  10n,
  [null],
  [[]],
  new Date(),
];

/** Made by functions of their own, or (Engine) of the layer below, which has its own test. */
const notCalled = new Set([
  ...["Buffer", "Collective", "CompiledFunction", "Device", "Engine", "ForwardStep", "Group", "Kernel", "StepPlan"],
  ...["TrainStep", "Weights"],
]);

type Callable = (...args: unknown[]) => unknown;

/** Everything that can be called, by name: functions, static methods, and `new` for classes. */
function entries(): [string, Callable][] {
  const { nn, optim, data, ...rest } = api;
  return [rest, nn, optim, data].flatMap((group) =>
    Object.entries(group).flatMap(([name, value]): [string, Callable][] => {
      if (typeof value !== "function" || value.prototype instanceof Error) return [];
      const isClass = /^class\b/.test(Function.prototype.toString.call(value));
      if (!isClass) return [[name, (...args) => Reflect.apply(value, undefined, args)]];
      const statics = Object.getOwnPropertyNames(value).flatMap((key): [string, Callable][] => {
        const method: unknown = Reflect.get(value, key);
        return typeof method === "function" && key !== "prototype"
          ? [[`${name}.${key}`, (...args) => Reflect.apply(method, value, args)]]
          : [];
      });
      if (notCalled.has(name)) return statics;
      return [[`new ${name}`, (...args) => Reflect.construct(value, args)], ...statics];
    }),
  );
}

/** Public methods of an object. */
function methods(object: object): [string, Callable][] {
  const found: [string, Callable][] = [];
  for (let p: object | null = object; p && p !== Object.prototype; p = Reflect.getPrototypeOf(p)) {
    for (const key of Object.getOwnPropertyNames(p)) {
      const value: unknown = Object.getOwnPropertyDescriptor(p, key)?.value;
      if (typeof value !== "function" || ["constructor", "close"].includes(key)) continue;
      found.push([key, (...args) => Reflect.apply(value, object, args)]);
    }
  }
  return found;
}

async function tolerates(name: string, call: () => unknown): Promise<void> {
  try {
    const result = await call();
    if (typeof result === "object" && result !== null && Symbol.dispose in result)
      Reflect.apply(dispose(result), result, []);
  } catch (error) {
    assert.ok(error instanceof MeshworkError, `${name}: ${error instanceof Error ? error.stack : String(error)}`);
  }
}

function dispose(value: object): Callable {
  const found: unknown = Reflect.get(value, Symbol.dispose);
  return typeof found === "function" ? (...args) => Reflect.apply(found, value, args) : () => undefined;
}

describe("the public API with values of the wrong type", function () {
  this.timeout(120_000);
  let mesh: api.Mesh<"dp">;
  before(async () => {
    mesh = await api.Mesh.open({ threads: 1, axes: { dp: 1 } });
  });
  after(() => mesh.close());

  for (const [name, call] of entries()) {
    it(name, async () => {
      const model = smallModel();
      const good = new Map<string, readonly unknown[]>([
        ["trainStep", [mesh, model, smallOptions(model)]],
        ["planTrainStep", [mesh, model, smallOptions(model)]],
        ["compile", [mesh, () => mesh.ones([1]), {}]],
        ["new Placement", [mesh, model, {}]],
        ["lossStep", [new api.Placement(mesh, model), () => 1, {}, { batchSize: 1 }]],
        ["forwardStep", [new api.Placement(mesh, model), () => 1, {}, { batchSize: 1 }]],
      ]).get(name);
      for (const value of values) {
        for (const count of [1, 2, 3]) await tolerates(name, () => call(...new Array(count).fill(value)));
        for (let i = 0; i < (good?.length ?? 0); i++) await tolerates(name, () => call(...good!.with(i, value)));
      }
    });
  }

  it("methods of tensors, meshes, groups, models and compiled functions", async () => {
    const x = mesh.tensor([
      [1, 2],
      [3, 4],
    ]);
    const objects = {
      x,
      mesh,
      group: mesh.group("dp"),
      device: mesh.device(0),
      buffer: mesh.device(0).allocate("f32", 4),
      model: smallModel(),
      fn: api.compile(mesh, (a: api.Tensor) => a),
    };
    for (const [owner, object] of Object.entries(objects)) {
      for (const [name, call] of methods(object)) {
        for (const value of values) {
          for (const args of [[value], [value, value], [x, value], [value, x]]) {
            await tolerates(`${owner}.${name}`, () => call(...args));
          }
        }
      }
    }
  });
});
