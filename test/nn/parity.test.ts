// GPT-2, Llama and Mixtral against PyTorch's float64 runs: logits, loss and gradient norm through the reference
// evaluator.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";
import type { LanguageModel } from "../../lib/nn/language-model.ts";
import { loadModel } from "../../lib/nn/load.ts";
import type { Graph } from "../../lib/ir/graph.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import type { Parameter } from "../../lib/tensor/parameter.ts";
import { Tensor, type TensorContext } from "../../lib/tensor/tensor.ts";
import { type NamedSym, SymBuilder, flatten, reachable } from "../../lib/tensor/trace.ts";
import { type Dense, dense } from "../conformance/dense.ts";
import { evaluate } from "../conformance/evaluate.ts";
import { describeWithReference, referenceFolder } from "../parity/reference.ts";

const root = referenceFolder;

function readJson(name: string, file: string): Record<string, unknown> {
  return JSON.parse(readFileSync(path.join(root, name, file), "utf8"));
}

/** The same graph with float64 for float32. */
function widen(graph: Graph): Graph {
  const wide = <T>(value: T): T | "f64" => (value === "f32" ? "f64" : value);
  return {
    outputs: graph.outputs,
    nodes: graph.nodes.map((node) => ({
      ...node,
      params: Object.fromEntries(Object.entries(node.params).map(([key, value]) => [key, wide(value)])),
    })),
    values: graph.values.map((value) => ({ ...value, type: { ...value.type, dtype: wide(value.type.dtype) } })),
  };
}

function feedsOf(model: LanguageModel, batch: Readonly<Record<string, Dense>>): Map<string, Dense> {
  const weights = model.parameters().map((p): [string, Dense] => [p.id, dense("f64", p.shape, [...p.loaded!])]);
  return new Map([...weights, ...Object.entries(batch)]);
}

function newContext(): TensorContext {
  return { builder: new SymBuilder(), name: "a trace" };
}

function tokens(context: TensorContext, name: string, shape: readonly number[]): Tensor {
  return new Tensor(context.builder.one("input", [], { name, dtype: "i32", shape: [...shape] }), context);
}

function logitsOf(model: LanguageModel, prompt: readonly number[]): readonly number[] {
  const context = newContext();
  const ids = tokens(context, "ids", [1, prompt.length]);
  const last = model.call(ids).select(1, -1);
  const graph = widen(flatten([{ name: "logits", sym: last.sym }]));
  return evaluate(graph, feedsOf(model, { ids: dense("i32", ids.shape, prompt) })).get("logits")!.data;
}

/** Mean loss and the norm of its gradient. */
function lossAndNorm(model: LanguageModel, batch: Readonly<Record<string, Dense>>): [number, number] {
  const context = newContext();
  const { builder } = context;
  const shape = batch.inputs!.shape;
  const terms = model.loss(tokens(context, "inputs", shape), tokens(context, "targets", shape));
  const { sum, count } = terms.loss!;
  const mean = sum.div(count);
  const reads = reachable([mean.sym]).filter((n) => n.op === "parameter");
  const grads = gradients(
    builder,
    mean.sym,
    builder.constant(1, "f32"),
    reads.map((n) => n.outputs[0]!),
  );
  // A tied parameter is read twice; its gradient is the sum.
  const totals = new Map<string, Tensor>();
  reads.forEach((n, i) => {
    const id = n.params.id as string;
    const part = mean.wrap(grads[i]!);
    totals.set(id, totals.get(id)?.add(part) ?? part);
  });
  const outputs: NamedSym[] = [
    { name: "loss", sym: mean.sym },
    ...[...totals].map(([name, total]) => ({ name, sym: total.square().sum().sym })),
  ];
  const results = evaluate(widen(flatten(outputs)), feedsOf(model, batch));
  const squares = [...totals.keys()].reduce((total, id) => total + results.get(id)!.data[0]!, 0);
  return [results.get("loss")!.data[0]!, Math.sqrt(squares)];
}

function firstBatch(name: string, samples: number, length: number): Record<string, Dense> {
  const bytes = readFileSync(path.join(root, name, "tokens.u16"));
  const rows = (shift: number): number[] =>
    Array.from({ length: samples * length }, (_, i) => bytes.readUInt16LE(2 * (i + shift)));
  return {
    inputs: dense("i32", [samples, length], rows(0)),
    targets: dense("i32", [samples, length], rows(1)),
  };
}

function near(found: number, expected: number, relative: number, what: string): void {
  const off = Math.abs(found - expected) / Math.abs(expected);
  assert.ok(off <= relative, `${what}: ${found}, expected ${expected}, off by ${off.toExponential(2)}`);
}

/** The tensors of a file: names and shapes. */
function headerOf(name: string): Record<string, readonly number[]> {
  const bytes = readFileSync(path.join(root, name, "model.safetensors"));
  const header: Record<string, { shape: number[] }> = JSON.parse(
    bytes.subarray(8, 8 + Number(bytes.readBigUInt64LE(0))).toString(),
  );
  return Object.fromEntries(
    Object.entries(header)
      .filter(([key]) => key !== "__metadata__")
      .map(([key, { shape }]) => [key, shape]),
  );
}

function storedOf(parameters: readonly Parameter[]): Record<string, readonly number[]> {
  return Object.fromEntries(parameters.flatMap((p) => p.parts.map((part) => [part.name, part.shape])));
}

for (const name of ["gpt2", "llama", "mixtral"]) {
  describeWithReference(`${name} against PyTorch`, function () {
    this.timeout(120_000);
    let model: LanguageModel;
    before(async () => {
      model = await loadModel(path.join(root, name));
    });

    it("has the file's weights, by name and shape", () => {
      assert.deepEqual(storedOf(model.parameters()), headerOf(name));
    });

    it("has its logits", () => {
      const expected = readJson(name, "logits.json") as { prompt: number[]; last_logits: number[] };
      const found = logitsOf(model, expected.prompt);
      expected.last_logits.forEach((value, i) => {
        assert.ok(Math.abs(found[i]! - value) <= 1e-6, `logit ${i}: ${found[i]}, expected ${value}`);
      });
    });

    it("has its loss and gradient norm", () => {
      const expected = readJson(name, "train.json") as {
        batch_size: number;
        sequence_length: number;
        loss: number[];
        grad_norm: number[];
      };
      const batch = firstBatch(name, expected.batch_size, expected.sequence_length);
      const [loss, norm] = lossAndNorm(model, batch);
      near(loss, expected.loss[0]!, 1e-6, "loss");
      near(norm, expected.grad_norm[0]!, 1e-6, "gradient norm");
    });
  });
}
