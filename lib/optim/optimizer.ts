// Optimizers: what state a parameter has, and the op that updates it in place.
import { expectList, expectObject } from "../core/check.ts";
import { ConfigError } from "../core/errors.ts";
import type { Builder } from "../ir/builder.ts";

/** The values of one parameter's update. */
export interface Update<V> {
  readonly parameter: V;
  readonly gradient: V;
  /** One per name in Optimizer.state. */
  readonly state: readonly V[];
  /** f32 [1]. */
  readonly learningRate: V;
  /** One per name in Optimizer.scalarNames, f32 [1]. */
  readonly scalars: readonly V[];
  /** Factor on the gradient (clipping), f32 [1]. */
  readonly scale: V;
  /** i32 [1]: 1 to update, 0 to leave everything as it is. */
  readonly gate: V;
  /** Whether weight decay applies to this parameter. */
  readonly decays: boolean;
}

/** How parameters follow their gradients. */
export interface Optimizer {
  readonly kind: "adamw" | "sgd";
  readonly learningRate: number;
  /** Names of the state tensors of a parameter: float32, zero at first, of its shape. */
  readonly state: readonly string[];
  /** Names of the numbers that change from step to step. */
  readonly scalarNames: readonly string[];
  /** Those numbers at a step, counted from 1. */
  scalars(step: number): readonly number[];
  /** Emits the update in place; returns the updated parameter. */
  update<V>(b: Builder<V>, values: Update<V>): V;
}

/** Settings of adamw(). */
export interface AdamWOptions {
  readonly learningRate: number;
  /** Decay rates of the moments. */
  readonly betas?: readonly [number, number];
  readonly eps?: number;
  /** Decoupled decay of parameters stored with two or more dims. */
  readonly weightDecay?: number;
}

/** Decoupled AdamW (Loshchilov & Hutter 2019), as PyTorch computes it. Throws ConfigError for settings out of range. */
export function adamw(options: AdamWOptions): Optimizer {
  expectObject("adamw's options", options);
  const { learningRate, betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01 } = options;
  expectNotNegative("learningRate", learningRate);
  expectList("betas", betas);
  expectFraction("betas[0]", betas[0]);
  expectFraction("betas[1]", betas[1]);
  expectNotNegative("eps", eps);
  expectNotNegative("weightDecay", weightDecay);
  return {
    kind: "adamw",
    learningRate,
    state: ["m", "v"],
    scalarNames: ["correction1", "correction2"],
    scalars: (step) => [1 - betas[0] ** step, 1 - betas[1] ** step],
    update(b, u) {
      const params = { beta1: betas[0], beta2: betas[1], eps, weightDecay: u.decays ? weightDecay : 0 };
      return b.one(
        "adamw",
        [u.parameter, u.gradient, ...u.state, u.learningRate, ...u.scalars, u.scale, u.gate],
        params,
      );
    },
  };
}

/** Settings of sgd(). */
export interface SgdOptions {
  readonly learningRate: number;
  readonly momentum?: number;
  readonly nesterov?: boolean;
  /** Decay added to the gradient of parameters stored with two or more dims. */
  readonly weightDecay?: number;
}

/** Stochastic gradient descent with momentum, as PyTorch computes it (dampening 0). Throws ConfigError. */
export function sgd(options: SgdOptions): Optimizer {
  expectObject("sgd's options", options);
  const { learningRate, momentum = 0, nesterov = false, weightDecay = 0 } = options;
  expectNotNegative("learningRate", learningRate);
  expectFraction("momentum", momentum);
  if (nesterov && momentum === 0) throw new ConfigError("nesterov needs a momentum above 0");
  expectNotNegative("weightDecay", weightDecay);
  return {
    kind: "sgd",
    learningRate,
    state: ["momentum"],
    scalarNames: [],
    scalars: () => [],
    update(b, u) {
      const params = { momentum, nesterov, weightDecay: u.decays ? weightDecay : 0 };
      return b.one("sgd", [u.parameter, u.gradient, ...u.state, u.learningRate, u.scale, u.gate], params);
    },
  };
}

function expectNotNegative(name: string, value: number): void {
  if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
    throw new ConfigError(`${name} is ${value}; it must be a number that is not negative`, {
      details: { [name]: value },
    });
  }
}

function expectFraction(name: string, value: number): void {
  if (!(value >= 0 && value < 1)) {
    throw new ConfigError(`${name} is ${value}; it must be from 0 to below 1`, { details: { [name]: value } });
  }
}
