// Models: refusals in the user's words, splits by heads, pipeline blocks, rotary scalings, dropout of attention.
import assert from "node:assert/strict";
import { sizeOf } from "../../lib/core/shape.ts";
import { attendCausally } from "../../lib/nn/attend.ts";
import { type ConfigJson, type ExpertsConfig, type LlamaConfig, parseModelConfig } from "../../lib/nn/config.ts";
import { Experts, imbalance, type Routing } from "../../lib/nn/experts.ts";
import type { LanguageModel } from "../../lib/nn/language-model.ts";
import { Dropout } from "../../lib/nn/layers.ts";
import { createModel } from "../../lib/nn/load.ts";
import { nameModules } from "../../lib/nn/module.ts";
import { inverseFrequencies } from "../../lib/nn/rotary.ts";
import { assignStages } from "../../lib/passes/stages.ts";
import { attention } from "../../lib/tensor/functions.ts";
import type { Parameter } from "../../lib/tensor/parameter.ts";
import { Tensor, type TensorContext } from "../../lib/tensor/tensor.ts";
import { SymBuilder, flatten, reachable } from "../../lib/tensor/trace.ts";
import { dense, type Dense } from "../conformance/dense.ts";
import { evaluate } from "../conformance/evaluate.ts";

const gpt2: ConfigJson = { model_type: "gpt2", vocab_size: 7, n_positions: 5, n_embd: 8, n_layer: 3, n_head: 2 };
const llama: ConfigJson = {
  model_type: "llama",
  vocab_size: 7,
  hidden_size: 8,
  intermediate_size: 6,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 16,
};

function create(json: ConfigJson): LanguageModel {
  return createModel(parseModelConfig(json));
}
function mixtralConfig(json: ConfigJson): LlamaConfig & { experts: ExpertsConfig } {
  const config = parseModelConfig(json);
  assert.ok(config.architecture === "mixtral" && config.experts);
  return { ...config, experts: config.experts };
}
function newContext(): TensorContext {
  return { builder: new SymBuilder(), name: "a trace" };
}
function input(
  context: TensorContext,
  name: string,
  shape: readonly number[],
  dtype: "i32" | "f32" | "f64" = "i32",
): Tensor {
  return new Tensor(context.builder.one("input", [], { name, dtype, shape: [...shape] }), context);
}
function compute(tensor: Tensor, feeds: Readonly<Record<string, Dense>> = {}): readonly number[] {
  const graph = flatten([{ name: "y", sym: tensor.sym }]);
  return evaluate(graph, new Map(Object.entries(feeds))).get("y")!.data;
}
function specsOf(model: LanguageModel): Record<string, string> {
  return Object.fromEntries(model.parameters().map((p) => [p.path, p.spec.map((axis) => axis ?? "-").join(" ")]));
}

describe("a language model", () => {
  it("refuses what are no token ids, and more positions than it has", () => {
    for (const model of [create(gpt2), create({ ...llama, max_position_embeddings: 5 })]) {
      const context = newContext();
      const refuse = (ids: Tensor, code: string, message: RegExp): void =>
        assert.throws(
          () => model.call(ids),
          (e: Error & { code?: string }) => e.code === code && message.test(e.message),
        );
      refuse(input(context, "x", [2, 6]), "ERR_SHAPE", /sequences of 6 tokens: the model has 5 positions/);
      refuse(input(context, "x", [2]), "ERR_SHAPE", /token ids are \[batch, time\], got \[2\]/);
      refuse(input(context, "x", [2, 3], "f32"), "ERR_DTYPE", /token ids are i32, got f32/);
      assert.throws(
        () => model.loss(input(context, "x", [2, 3]), input(context, "y", [2, 4])),
        /inputs are \[2, 3\], targets \[2, 4\]: there is one target for each input/,
      );
      assert.deepEqual(model.call(input(context, "x", [2, 5])).shape, [2, 5, 7]);
    }
  });

  it("counts targets that are not ignored, from inputs alone", () => {
    const context = newContext();
    const terms = create(llama).loss(input(context, "x", [2, 2]), input(context, "y", [2, 2]));
    const count = terms.loss!.count;
    assert.deepEqual(compute(count, { y: dense("i32", [2, 2], [3, -100, 0, 6]) }), [3]);
    assert.deepEqual(
      reachable([count.sym]).flatMap((n) => (n.op === "input" ? [n.params.name] : [])),
      ["y"],
    );
  });

  it("splits heads, inner widths and vocabulary over tp, and nothing else", () => {
    const specs = specsOf(create(gpt2));
    assert.deepEqual(specs["wte.weight"], "tp -");
    assert.deepEqual(specs["wpe.weight"], "- -");
    assert.deepEqual(specs["h.0.attn.c_attn.weight"], "- - tp -");
    assert.deepEqual(specs["h.0.attn.c_attn.bias"], "- tp -");
    assert.deepEqual(specs["h.0.attn.c_proj.weight"], "tp - -");
    assert.deepEqual(specs["h.0.attn.c_proj.bias"], "-");
    assert.deepEqual(specs["h.0.mlp.c_fc.weight"], "- tp");
    assert.deepEqual(specs["h.0.mlp.c_fc.bias"], "tp");
    assert.deepEqual(specs["h.0.mlp.c_proj.weight"], "tp -");
    assert.deepEqual(specs["h.0.mlp.c_proj.bias"], "-");
    const grouped = specsOf(create({ ...llama, attention_bias: true, mlp_bias: true }));
    const layer = "model.layers.2";
    assert.deepEqual(grouped["lm_head.weight"], "tp -");
    assert.deepEqual(grouped[`${layer}.self_attn.q_proj.weight`], "tp - - -");
    assert.deepEqual(grouped[`${layer}.self_attn.q_proj.bias`], "tp - -");
    assert.deepEqual(grouped[`${layer}.self_attn.v_proj.weight`], "tp - -");
    assert.deepEqual(grouped[`${layer}.self_attn.o_proj.weight`], "- tp - -");
    assert.deepEqual(grouped[`${layer}.self_attn.o_proj.bias`], "-");
    assert.deepEqual(grouped[`${layer}.mlp.up_proj.bias`], "tp");
    assert.deepEqual(grouped[`${layer}.mlp.down_proj.weight`], "- tp");
  });

  it("has fresh weights by its config, smaller where they add to the residual stream of GPT-2", () => {
    const initial = new Map(
      create(gpt2)
        .parameters()
        .map((p) => [p.path, p.initial]),
    );
    assert.deepEqual(initial.get("wte.weight"), { kind: "normal", std: 0.02 });
    assert.deepEqual(initial.get("h.1.mlp.c_proj.weight"), { kind: "normal", std: 0.02 / Math.sqrt(6) });
    assert.deepEqual(initial.get("h.1.mlp.c_proj.bias"), { kind: "constant", value: 0 });
    assert.deepEqual(initial.get("ln_f.weight"), { kind: "constant", value: 1 });
    const wide = create({ ...llama, initializer_range: 0.5, tie_word_embeddings: true });
    assert.equal(wide.parameters().at(-1)!.path, "model.norm.weight");
    assert.deepEqual(wide.parameters()[0]!.initial, { kind: "normal", std: 0.5 });
  });

  it("has blocks for pipeline stages that hold every parameter, in the order of data", () => {
    const mixtral = { ...llama, model_type: "mixtral", num_local_experts: 3, num_experts_per_tok: 2 };
    for (const json of [gpt2, llama, mixtral]) {
      const model = create(json);
      const blocks = model.pipelineBlocks(4);
      const { stageOf } = assignStages(blocks, 3);
      const context = newContext();
      const logits = model.call(input(context, "ids", [1, 4]));
      const stages = reachable([logits.sym]).flatMap((n) => (n.path === "" ? [] : [stageOf(n.path)]));
      assert.deepEqual([...new Set(stages)], [0, 1, 2]);
      for (const p of model.parameters()) assert.notEqual(stageOf(p.path), undefined, p.path);
      const block = blocks.find((b) => b.path.endsWith(".1"))!;
      const held = model.parameters().filter((p) => p.path.startsWith(`${block.path}.`));
      // Of three experts a token meets two.
      const met = (p: Parameter): number => (p.parts.length > 1 ? 2 / 3 : 1) * sizeOf(p.shape);
      const matrices = held.filter((p) => p.decays).reduce((n, p) => n + met(p), 0);
      // A token's multiply-adds are the weights it meets, and the positions it sees.
      assert.equal(block.cost, matrices + 8 * 4);
    }
  });
});

describe("experts", () => {
  const mixtral = { ...llama, model_type: "mixtral", num_local_experts: 3, num_experts_per_tok: 2 };

  it("choose the largest probabilities, the first of equal ones, and weigh them to 1", () => {
    const experts = nameModules(new Experts(mixtralConfig(mixtral)));
    const context = newContext();
    const { share, probability } = experts.call(input(context, "x", [1, 2, 8], "f32"));
    // The router's rows are the first three unit vectors: a token's logits are its first elements.
    const unit = (i: number): number => (Math.floor(i / 8) === i % 8 ? 1 : 0);
    const feeds = {
      x: dense("f32", [1, 2, 8], [0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0, 0]),
      [experts.gate.weight.id]: dense(
        "f32",
        [3, 8],
        Array.from({ length: 24 }, (_, i) => unit(i)),
      ),
    };
    assert.deepEqual(compute(share, feeds), [0.5, 1, 0.5]);
    const sum = Math.exp(-1) + 1 + Math.exp(1);
    [Math.exp(-1), 1, Math.exp(1)].forEach((e, i) => {
      assert.ok(Math.abs(compute(probability, feeds)[i]! - (1 / 3 + e / sum) / 2) < 1e-6);
    });
  });

  it("give a balance term where the config asks for it: the number chosen at best", () => {
    const context = newContext();
    const batch = [input(context, "x", [2, 3]), input(context, "y", [2, 3])] as const;
    assert.deepEqual(Object.keys(create(mixtral).loss(...batch)), ["loss"]);
    const terms = create({ ...mixtral, output_router_logits: true, router_aux_loss_coef: 0.02 }).loss(...batch);
    assert.deepEqual([terms.balance!.weight, terms.balance!.sum.shape, compute(terms.balance!.count)], [0.02, [], [2]]);
    const routing = (probability: string, share: string): Routing => ({
      probability: input(context, probability, [3], "f64"),
      share: input(context, share, [3], "f64"),
      dropped: undefined,
    });
    const row = (...values: number[]): Dense => dense("f64", [3], values);
    const uneven = imbalance([routing("p", "s"), routing("q", "r")]);
    const feeds = { p: row(1, 0, 0), s: row(1, 1, 0), q: row(0, 0.5, 0.5), r: row(1, 0, 1) };
    assert.deepEqual(compute(uneven, feeds), [3 * (0.5 * 1 + 0.25 * 0.5 + 0.25 * 0.5)]);
    const third = row(1 / 3, 1 / 3, 1 / 3);
    const two = row(2 / 3, 2 / 3, 2 / 3);
    assert.ok(Math.abs(compute(uneven, { p: third, s: two, q: third, r: two })[0]! - 2) < 1e-12);
  });
});

describe("rotary frequencies", () => {
  const frequenciesOf = (json: ConfigJson): readonly number[] => {
    const config = parseModelConfig({ ...llama, head_dim: 16, ...json });
    if (config.architecture === "gpt2") return [];
    return compute(inverseFrequencies(newContext(), config));
  };
  const plain = Array.from({ length: 8 }, (_, i) => 500_000 ** (-i / 8));

  it("are powers of theta, rounded once", () => {
    assert.deepEqual(frequenciesOf({ rope_theta: 500_000 }), plain.map(Math.fround));
  });
  it("are divided by a linear factor", () => {
    const found = frequenciesOf({ rope_theta: 500_000, rope_scaling: { type: "linear", factor: 4 } });
    assert.deepEqual(
      found,
      plain.map((f) => Math.fround(f / 4)),
    );
  });
  it("stretch by wavelength in Llama 3", () => {
    const [factor, low, high, context] = [8, 1, 4, 8192];
    const scaling = { rope_type: "llama3", factor, low_freq_factor: low, high_freq_factor: high };
    const found = frequenciesOf({
      rope_theta: 500_000,
      rope_scaling: { ...scaling, original_max_position_embeddings: context },
    });
    const expected = plain.map((f) => {
      const wavelength = (2 * Math.PI) / f;
      if (wavelength < context / high) return f;
      if (wavelength > context / low) return f / factor;
      const smooth = (context / wavelength - low) / (high - low);
      return (1 - smooth) * (f / factor) + smooth * f;
    });
    found.forEach((f, i) => {
      assert.ok(Math.abs(f / expected[i]! - 1) < 1e-7, `${i}: ${f}, expected ${expected[i]}`);
    });
    assert.ok(new Set(found.map((f, i) => Math.round(1000 * (f / plain[i]!)))).size > 2);
  });
});

describe("attention with dropout", () => {
  const shapes = { q: [2, 3, 2, 2, 4], k: [2, 3, 2, 4], v: [2, 3, 2, 5] };
  const draw = (shape: readonly number[], seed: number): Dense =>
    dense(
      "f64",
      shape,
      Array.from({ length: sizeOf(shape) }, (_, i) => Math.sin(seed + 1.7 * i)),
    );
  const feeds = {
    q: draw(shapes.q, 1),
    k: draw(shapes.k, 2),
    v: draw(shapes.v, 3),
    $key: dense("i32", [3], [1, 2, 3]),
    $samples: dense("i32", [2], [10, 4]),
  };
  const operands = (context: TensorContext): [Tensor, Tensor, Tensor] => [
    input(context, "q", shapes.q, "f64"),
    input(context, "k", shapes.k, "f64"),
    input(context, "v", shapes.v, "f64"),
  ];

  it("is the attention op where nothing is dropped", () => {
    const context = newContext();
    const [q, k, v] = operands(context);
    const tiny = compute(attendCausally(q, k, v, new Dropout(1e-12)), feeds);
    const exact = compute(attention(q, k, v), feeds);
    exact.forEach((value, i) => {
      assert.ok(Math.abs(tiny[i]! - value) < 1e-9, `${i}: ${tiny[i]}, expected ${value}`);
    });
    assert.equal(attendCausally(q, k, v, new Dropout(0.5).eval()).sym.node.op, "attention");
  });

  it("drops probabilities by the sample's global index, the same in any batch", () => {
    const context = newContext();
    const [q, k, v] = operands(context);
    const both = compute(attendCausally(q, k, v, new Dropout(0.5)), feeds);
    const exact = compute(attention(q, k, v), feeds);
    assert.ok(both.some((value, i) => Math.abs(value - exact[i]!) > 1e-3));
    const second = newContext();
    const half = { q: shapes.q, k: shapes.k, v: shapes.v };
    const [q1, k1, v1] = (["q", "k", "v"] as const).map((name) =>
      input(second, name, [1, ...half[name].slice(1)], "f64"),
    ) as [Tensor, Tensor, Tensor];
    const lower = (x: Dense): Dense => dense("f64", [1, ...x.shape.slice(1)], x.data.slice(x.data.length / 2));
    const one = compute(attendCausally(q1, k1, v1, new Dropout(0.5)), {
      ...feeds,
      q: lower(feeds.q),
      k: lower(feeds.k),
      v: lower(feeds.v),
      $samples: dense("i32", [1], [4]),
    });
    assert.deepEqual(one, both.slice(both.length / 2));
  });
});
