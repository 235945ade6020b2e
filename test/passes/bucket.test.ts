// Buckets: what is joined, where it is placed, and that nothing but the number of exchanges depends on their size.
import assert from "node:assert/strict";
import { fromStorage } from "../../lib/core/dtype.ts";
import type { Graph, Node } from "../../lib/ir/graph.ts";
import { verify } from "../../lib/ir/verify.ts";
import { GPT2 } from "../../lib/nn/gpt2.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { getOp } from "../../lib/ops/index.ts";
import { bucketExchanges } from "../../lib/passes/bucket.ts";
import { GraphBuilder } from "../../lib/passes/graph-builder.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { trainStep } from "../../lib/train/step.ts";

const sizes = { fsdp: 2 };

/** A graph of operands that are partial over fsdp, and what is done with them, in order. */
class Exchanges {
  readonly b = new GraphBuilder();

  value(op: string, inputs: readonly number[], params: Record<string, unknown>, dims: string[][]): number {
    const [v] = this.b.emit(op, inputs, params);
    this.b.graph.values[v!]!.spec = { dims, partial: {} };
    return v!;
  }

  input(name: string, op = "input"): number {
    return this.value(op, [], { name, id: name, dtype: "f32", shape: [4] }, [op === "parameter" ? ["fsdp"] : []]);
  }

  work(v: number): number {
    return this.value("exp", [v], {}, [[]]);
  }

  scatter(v: number): number {
    return this.value("reduce_scatter", [v], { axes: ["fsdp"], dim: 0, kind: "sum" }, [["fsdp"]]);
  }

  gather(v: number): number {
    return this.value("all_gather", [v], { axes: ["fsdp"], dim: 0 }, [[]]);
  }

  run(outputs: readonly number[], bytes: number, prefetch = 0): string[] {
    this.b.graph.outputs.push(...outputs.map((value, i) => ({ name: `y${i}`, value })));
    const layer = ({ path }: Node): string => path;
    const made = bucketExchanges(this.b.graph, { bytes, prefetch, sizes, layer });
    verify(made, getOp);
    assert.equal(made.outputs.length, outputs.length);
    return made.nodes.map((node) => nameOf(made, node));
  }
}

function nameOf(graph: Graph, { op, params, inputs }: Node): string {
  if (op === "bucket") return `${params.op} of ${inputs.length}`;
  const from = inputs.map((v) => graph.nodes[graph.values[v]!.node]!.params.name).join();
  return `${op} ${params.name ?? from}`.trim();
}

describe("buckets", function () {
  this.timeout(60_000);

  it("join reductions up to their size, placed where the last operand is made", () => {
    const build = (bytes: number): string[] => {
      const e = new Exchanges();
      const made = ["a", "b", "c"].map((name) => e.scatter(e.work(e.input(name))));
      return e.run(made, bytes).filter((name) => !name.startsWith("input"));
    };
    assert.deepEqual(build(100), ["exp a", "exp b", "exp c", "reduce_scatter of 3"]);
    assert.deepEqual(build(32), ["exp a", "exp b", "reduce_scatter of 2", "exp c", "reduce_scatter"]);
    assert.deepEqual(build(0), ["exp a", "reduce_scatter", "exp b", "reduce_scatter", "exp c", "reduce_scatter"]);
  });

  it("do not join what one needs of the other", () => {
    const e = new Exchanges();
    const first = e.scatter(e.work(e.input("a")));
    const second = e.scatter(e.work(e.gather(first)));
    const names = e.run([second], 1000);
    assert.equal(names.filter((name) => name.startsWith("reduce_scatter")).length, 2);
  });

  it("gather a layer's parameters at once where the first is read, or a layer ahead", () => {
    const build = (prefetch: number): string[] => {
      const e = new Exchanges();
      let x = e.input("x");
      for (const path of ["h.0", "h.1", "h.2"]) {
        e.b.path = path;
        for (const part of ["v", "w"]) {
          x = e.value("add", [x, e.gather(e.input(`${path}.${part}`, "parameter"))], {}, [[]]);
        }
      }
      return e.run([x], 1000, prefetch).filter((name) => !name.startsWith("parameter"));
    };
    const gather = "all_gather of 2";
    assert.deepEqual(
      build(0).map((name) => name.split(" ")[0]),
      ["input", "all_gather", "add", "add", "all_gather", "add", "add", "all_gather", "add", "add"],
    );
    const ahead = build(1);
    assert.deepEqual(ahead.slice(1, 3), [gather, gather]);
    assert.equal(ahead.indexOf(gather, 3), 5);
  });

  it("change no bit of a step, whatever their size", async () => {
    const train = async (axes: Record<string, number>, bucketBytes: number) => {
      await using mesh = await Mesh.open({ device: "cpu", axes, threads: 1 });
      const model = new GPT2({
        architecture: "gpt2",
        vocabSize: 37,
        width: 24,
        layers: 2,
        heads: 4,
        headDim: 6,
        innerWidth: 40,
        maxPositions: 8,
        initializerRange: 0.3,
        endTokens: [],
        activation: "gelu_new",
        tieWordEmbeddings: true,
        layerNormEps: 1e-5,
        attentionDropout: 0,
        embeddingDropout: 0,
        residualDropout: 0,
      });
      using step = await trainStep(mesh, model, {
        loss: ({ inputs, targets }) => model.loss(inputs, targets),
        optimizer: adamw({ learningRate: 1e-2 }),
        batchSize: 6,
        batch: { inputs: { dtype: "i32", shape: [8] }, targets: { dtype: "i32", shape: [8] } },
        clipNorm: 1,
        bucketBytes,
      });
      const ids = Array.from({ length: 48 }, (_, i) => (i * 7) % 37);
      const losses: number[] = [];
      for (let k = 0; k < 3; k++) losses.push((await step.run({ inputs: ids, targets: ids })).loss);
      const weights = model.parameters().map((p) => fromStorage(p.dtype, mesh.store.read(p.id)));
      const { traffic } = mesh.engine.stats().devices[0]!;
      const calls = traffic.reduce((sum, t) => sum + t.calls, 0);
      const bytes = traffic.reduce((sum, t) => sum + t.bytes, 0);
      return { bits: { losses, weights, bytes }, calls };
    };
    for (const axes of [
      { dp: 2, fsdp: 2 },
      { pp: 2, fsdp: 2 },
    ]) {
      const large = await train(axes, 2 ** 20);
      const small = await train(axes, 0);
      assert.deepEqual(large.bits, small.bits);
      assert.ok(large.calls < small.calls / 2, `${large.calls} calls, not many fewer than ${small.calls}`);
    }
  });
});
