// Modules: paths, order of parameters, tying, labelling of what calls make; dropout's sites and modes.
import assert from "node:assert/strict";
import { ConfigError } from "../../lib/core/errors.ts";
import { siteHash } from "../../lib/core/random.ts";
import { Dropout, Embedding, Linear, Projection } from "../../lib/nn/layers.ts";
import { Module, nameModules } from "../../lib/nn/module.ts";
import { Parameter } from "../../lib/tensor/parameter.ts";
import { Tensor, type TensorContext } from "../../lib/tensor/tensor.ts";
import { SymBuilder, reachable } from "../../lib/tensor/trace.ts";

const initial = { kind: "constant", value: 0 } as const;

function trace(): TensorContext {
  return { builder: new SymBuilder(), name: "a trace" };
}
function input(context: TensorContext, shape: readonly number[], dtype: "f32" | "i32" = "f32"): Tensor {
  return new Tensor(context.builder.one("input", [], { name: "x", dtype, shape }), context);
}
/** "path op" of every node but leaves. */
function nodes(result: Tensor): string[] {
  return reachable([result.sym])
    .filter((n) => n.inputs.length > 0)
    .map((n) => `${n.path} ${n.op}`);
}

class Inner extends Module {
  readonly first = new Linear(4, 4, { bias: false });
  readonly gain = new Parameter({ shape: [4], initial });
  forward(x: Tensor): Tensor {
    return this.first.call(x).mul(this.gain);
  }
}
class Outer extends Module {
  readonly table = new Embedding(5, 4);
  readonly h = [new Inner(), new Inner()];
  readonly head = new Projection({ dims: "v w", over: "w", sizes: { v: 5, w: 4 }, initial, weight: this.table.weight });
  readonly again = this.h[0];
  forward(ids: Tensor): Tensor {
    let x = this.table.call(ids);
    for (const inner of this.h) x = inner.call(x);
    return this.head.call(x.neg());
  }
}

describe("modules", () => {
  it("name parameters in the order of definition, shared ones once", () => {
    const model = nameModules(new Outer());
    assert.deepEqual(
      model.parameters().map((p) => p.path),
      ["table.weight", "h.0.first.weight", "h.0.gain", "h.1.first.weight", "h.1.gain"],
    );
    assert.deepEqual(
      model.namedModules().map(([path, module]) => [path, module.path]),
      ["", "table", "h.0", "h.0.first", "h.1", "h.1.first", "head"].map((path) => [path, path]),
    );
    assert.equal(model.head.weight, model.table.weight);
    assert.equal(model.parameters()[0]!.stored.name, "table.weight");
  });

  it("take a prefix when a larger model is named", () => {
    class Two extends Module {
      readonly models = [new Outer(), nameModules(new Outer())];
      forward(ids: Tensor): Tensor {
        return this.models[0]!.call(ids);
      }
    }
    assert.equal(nameModules(new Two()).parameters().at(-1)!.path, "models.1.h.1.gain");
  });

  it("label what their calls make, and restore the label after an exception", () => {
    const model = nameModules(new Outer());
    const context = trace();
    const made = nodes(model.call(input(context, [2, 3], "i32")));
    assert.deepEqual(made, [
      "table embedding",
      "h.0.first einsum",
      "h.0 reshape",
      "h.0 broadcast",
      "h.0 mul",
      "h.1.first einsum",
      "h.1 reshape",
      "h.1 broadcast",
      "h.1 mul",
      " neg",
      "head einsum",
    ]);
    assert.throws(() => model.h[0]!.call(input(context, [2, 3])), {
      code: "ERR_SHAPE",
      message: "h.0.first: takes [..., 4], got [2, 3]",
    });
    assert.equal(context.builder.path, "");
  });
});

describe("a projection", () => {
  it("has a spec, a bias and a stored shape by the names of its dims", () => {
    const layer = nameModules(
      new Projection({
        dims: "w c h d",
        over: "w",
        sizes: { w: 6, c: 3, h: 2, d: 5 },
        split: { h: "tp" },
        stored: [6, 30],
        bias: true,
        initial,
      }),
    );
    assert.deepEqual(layer.weight.shape, [6, 3, 2, 5]);
    assert.deepEqual(layer.weight.spec, [null, null, "tp", null]);
    assert.deepEqual(layer.weight.stored, { name: "weight", shape: [6, 30] });
    assert.deepEqual(layer.bias!.spec, [null, "tp", null]);
    assert.deepEqual(layer.bias!.stored, { name: "bias", shape: [30] });
    assert.equal(layer.bias!.decays, false);
    assert.deepEqual(layer.call(input(trace(), [7, 6])).shape, [7, 3, 2, 5]);
  });
});

describe("dropout", () => {
  const site = (result: Tensor): unknown => reachable([result.sym]).findLast((n) => n.op === "random")?.params.site;

  it("is nothing at probability 0 and in evaluation", () => {
    const x = input(trace(), [2, 3]);
    assert.equal(new Dropout(0).call(x), x);
    assert.equal(new Dropout(0.5).eval().call(x), x);
    assert.throws(() => new Dropout(1), ConfigError);
  });

  it("draws from a site of its path and ordinal, alike in every trace", () => {
    class Twice extends Module {
      readonly drop = new Dropout(0.25);
      forward(x: Tensor): [Tensor, Tensor] {
        return [this.drop.call(x), this.drop.call(x)];
      }
    }
    const model = nameModules(new Twice());
    for (let i = 0; i < 2; i++) {
      const [first, second] = model.call(input(trace(), [2, 3]));
      assert.deepEqual([site(first), site(second)], [siteHash("drop#0"), siteHash("drop#1")]);
      const names = reachable([first.sym]).filter((n) => n.op === "input");
      assert.deepEqual(names.map((n) => n.params.name).sort(), ["$key", "$samples", "x"]);
    }
  });
});
