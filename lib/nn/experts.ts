// A mixture of experts (Shazeer et al. 2017): a router picks the best few of several feed-forward layers for each
// token, and only those see it. Dims: b samples, t tokens, w width, e experts, k choices of a token, f inner width.
import { expectObject } from "../core/check.ts";
import { iota, topk } from "../tensor/functions.ts";
import { Parameter } from "../tensor/parameter.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ExpertsConfig, LlamaConfig } from "./config.ts";
import { Projection } from "./layers.ts";
import { Module } from "./module.ts";

/** What a router did. */
export interface Routing {
  /** [e]: the probability that each expert got, as a mean over tokens. */
  readonly probability: Tensor;
  /** [e]: how often each expert was chosen, as a mean over tokens, without gradient. */
  readonly share: Tensor;
  /** One number: choices that found no room with their expert; undefined where there is room for all. */
  readonly dropped: Tensor | undefined;
}

type Config = LlamaConfig & { readonly experts: ExpertsConfig };

/** Mesh axis over which the experts of a layer are split. */
const axis = "ep";

/** The weights [e, rows, columns] of all experts; in files one tensor for each. */
class ExpertWeights extends Module {
  readonly weight: Parameter;

  constructor(config: Config, sizes: readonly [number, number], split: readonly (string | null)[]) {
    super();
    const { count } = config.experts;
    const shape = [count, ...sizes];
    const parts = (path: string): string[] => Array.from({ length: count }, (_, e) => partName(path, e));
    this.weight = new Parameter({
      shape,
      initial: { kind: "normal", std: config.initializerRange },
      spec: [axis, ...split],
      stored: { shape, parts },
    });
  }

  /** rows [b, t, k, columns] in the order of experts, `counts` [e] of each -> [b, t, k, rows]. */
  forward(rows: Tensor, counts: Tensor): Tensor {
    return rows.emit("grouped_matmul", [counts, this.weight], { turned: false })[0]!;
  }
}

/** Mixtral's name of an expert's part: "experts.w1.weight" -> "experts.0.w1.weight". */
function partName(path: string, expert: number): string {
  return path.replace(/(^|\.)experts\.(?=w\d\.weight$)/, `$1experts.${expert}.`);
}

/** Gated feed-forward layers, under Mixtral's names. */
class ExpertStack extends Module {
  readonly w1: ExpertWeights;
  readonly w2: ExpertWeights;
  readonly w3: ExpertWeights;
  readonly #activation: LlamaConfig["activation"];

  constructor(config: Config) {
    super();
    const { width, innerWidth } = config;
    this.w1 = new ExpertWeights(config, [innerWidth, width], ["tp", null]);
    this.w2 = new ExpertWeights(config, [width, innerWidth], [null, "tp"]);
    this.w3 = new ExpertWeights(config, [innerWidth, width], ["tp", null]);
    this.#activation = config.activation;
  }

  /** rows [b, t, k, w] in the order of experts, `counts` [e] of each -> the same dims. */
  forward(rows: Tensor, counts: Tensor): Tensor {
    const gated = this.w1.call(rows, counts).emit("expert_gate", [this.w3.call(rows, counts), counts], {
      activation: this.#activation,
    })[0]!;
    return this.w2.call(gated, counts);
  }
}

/** The experts of a layer and their router. */
export class Experts extends Module {
  readonly gate: Projection;
  readonly experts: ExpertStack;
  readonly #config: ExpertsConfig;

  constructor(config: Config) {
    super();
    expectObject("a model's config", config);
    expectObject("a model's config of experts", config.experts);
    this.gate = new Projection({
      dims: "e w",
      over: "w",
      sizes: { e: config.experts.count, w: config.width },
      initial: { kind: "normal", std: config.initializerRange },
    });
    this.experts = new ExpertStack(config);
    this.#config = config.experts;
  }

  /** x [b, t, w] -> result [b, t, w], and what the router did. */
  forward(x: Tensor): Routing & { readonly result: Tensor } {
    const { count, perToken } = this.#config;
    const probabilities = this.gate.call(x).softmax();
    const { values, indices } = topk(probabilities, perToken);
    const weights = values.div(values.sum(-1, true));
    const capacity = this.#capacity(x.shape[1]!);
    const bounded = capacity === undefined ? {} : { capacity };
    const kept =
      capacity === undefined ? indices : indices.emit("expert_capacity", [], { experts: count, capacity })[0]!;
    const plan = kept.emit("expert_sort", [], { experts: count });
    const [rows, counts] = x.emit("expert_dispatch", plan, { axis, ...bounded }) as [Tensor, Tensor];
    const made = this.experts.call(rows, counts).emit("expert_return", plan, { axis, ...bounded })[0]!;
    return {
      result: made.emit("expert_combine", [weights])[0]!,
      probability: probabilities.mean([0, 1]),
      share: shareOf(indices, probabilities),
      dropped: capacity === undefined ? undefined : kept.lt(0).cast("f32").sum(),
    };
  }

  /** Most choices of a sample that an expert takes, where that is bounded: in training only. */
  #capacity(tokens: number): number | undefined {
    const { capacityFactor, count, perToken } = this.#config;
    if (capacityFactor === undefined || !this.training) return undefined;
    return Math.max(1, Math.ceil((capacityFactor * tokens * perToken) / count));
  }
}

/** How often each expert was chosen for a token, [e]. */
function shareOf(indices: Tensor, probabilities: Tensor): Tensor {
  const [b, t, k] = indices.shape as readonly [number, number, number];
  const e = probabilities.shape[2]!;
  const chosen = indices.reshape([b, t, k, 1]).eq(iota(indices.context, [1, 1, 1, e], 3));
  return chosen.cast(probabilities.dtype).sum(2).mean([0, 1]);
}

/** How unevenly the experts of all layers are used: the number chosen for a token at best (Fedus et al. 2021). */
export function imbalance(routing: readonly Routing[]): Tensor {
  const mean = (of: (routing: Routing) => Tensor): Tensor =>
    routing
      .map(of)
      .reduce((sum, part) => sum.add(part))
      .div(routing.length);
  const probability = mean((r) => r.probability);
  return probability
    .mul(mean((r) => r.share))
    .sum()
    .mul(probability.size);
}
