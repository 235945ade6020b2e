// A mixture of experts (Shazeer et al. 2017): a router weighs the best few of several feed-forward layers for each token.
// Every expert sees every token, and those not chosen count with weight 0: exact, with no token dropped.
import { expectObject } from "../core/check.ts";
import { iota } from "../tensor/functions.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ExpertsConfig, LlamaConfig } from "./config.ts";
import { activate, Projection } from "./layers.ts";
import { Module } from "./module.ts";

/** What a router did: for each expert e, the probability it got and how often it was chosen, as means over tokens. */
export interface Routing {
  /** [e]. */
  readonly probability: Tensor;
  /** [e], without gradient. */
  readonly share: Tensor;
}

type Config = LlamaConfig & { readonly experts: ExpertsConfig };

/** A gated feed-forward layer, under Mixtral's names. */
class Expert extends Module {
  readonly w1: Projection;
  readonly w2: Projection;
  readonly w3: Projection;
  readonly #activation: LlamaConfig["activation"];

  constructor(config: Config) {
    super();
    const common = {
      sizes: { w: config.width, f: config.innerWidth },
      split: { f: "tp" },
      initial: { kind: "normal", std: config.initializerRange },
    } as const;
    this.w1 = new Projection({ ...common, dims: "f w", over: "w" });
    this.w2 = new Projection({ ...common, dims: "w f", over: "f" });
    this.w3 = new Projection({ ...common, dims: "f w", over: "w" });
    this.#activation = config.activation;
  }

  forward(x: Tensor): Tensor {
    return this.w2.call(activate(this.w1.call(x), this.#activation).mul(this.w3.call(x)));
  }
}

/** The experts of a layer and their router. */
export class Experts extends Module {
  readonly gate: Projection;
  readonly experts: readonly Expert[];
  readonly #perToken: number;

  constructor(config: Config) {
    super();
    expectObject("a model's config", config);
    expectObject("a model's config of experts", config.experts);
    const { count, perToken } = config.experts;
    this.gate = new Projection({
      dims: "e w",
      over: "w",
      sizes: { e: count, w: config.width },
      initial: { kind: "normal", std: config.initializerRange },
    });
    this.experts = Array.from({ length: count }, () => new Expert(config));
    this.#perToken = perToken;
  }

  /** x [b, t, w] -> result [b, t, w], and what the router did. */
  forward(x: Tensor): Routing & { readonly result: Tensor } {
    // Before the router: in the backward pass their parts of x's gradient, which tensor parallelism must sum, come together.
    const outputs = this.experts.map((expert) => expert.call(x));
    const probabilities = this.gate.call(x).softmax();
    const chosen = largest(probabilities.stopGradient(), this.#perToken);
    const kept = chosen.where(probabilities, 0);
    const weights = kept.div(kept.sum(-1, true));
    const parts = outputs.map((output, e) => output.mul(weights.slice(-1, e, e + 1)));
    const result = parts.reduce((sum, part) => sum.add(part));
    const share = chosen.cast(probabilities.dtype).mean([0, 1]);
    return { result, probability: probabilities.mean([0, 1]), share };
  }
}

/** Where x [b, t, e] has the `count` largest elements of its last dim (bool); of equal ones the first. */
function largest(x: Tensor, count: number): Tensor {
  const [b, t, e] = x.shape as readonly [number, number, number];
  const [own, other] = [x.reshape([b, t, e, 1]), x.reshape([b, t, 1, e])];
  const earlier = iota(x.context, [e, e], 1).lt(iota(x.context, [e, e], 0));
  const beaten = other.gt(own).or(other.eq(own).and(earlier.broadcastTo([b, t, e, e])));
  return beaten.cast("i32").sum(-1).lt(count);
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
