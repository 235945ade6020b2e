// Learning-rate schedules: pure functions of the step, which counts from 1.
import { describe } from "../core/describe.ts";
import { expectObject } from "../core/check.ts";
import { ConfigError } from "../core/errors.ts";

/** The learning rate of a step, counted from 1. Throws ConfigError for a step that is no positive integer. */
export type LearningRateSchedule = (step: number) => number;

export interface WarmupOptions {
  /** The rate after the warm-up. */
  readonly learningRate: number;
  /** Steps in which the rate rises in equal parts to `learningRate`, which the last of them has. Default 0. */
  readonly warmupSteps?: number;
}

export interface DecayOptions extends WarmupOptions {
  /** The step, warm-up included, at which the decay ends; the rate stays as it is then. */
  readonly totalSteps: number;
  /** The rate at the end as a part of `learningRate`, 0 to 1. Default 0. */
  readonly finalFraction?: number;
}

/** The same rate throughout, after the warm-up. Throws ConfigError for options out of range. */
export function constant(options: WarmupOptions | number): LearningRateSchedule {
  return schedule(typeof options === "number" ? { learningRate: options } : options, () => 1);
}

/**
 * Falls along half a cosine wave from the warm-up's end to `totalSteps`. Throws ConfigError for options out of range.
 */
export function cosine(options: DecayOptions): LearningRateSchedule {
  return decay(options, (progress) => 0.5 * (1 + Math.cos(Math.PI * progress)));
}

/** Falls in a straight line from the warm-up's end to `totalSteps`. Throws ConfigError for options out of range. */
export function linear(options: DecayOptions): LearningRateSchedule {
  return decay(options, (progress) => 1 - progress);
}

/** `shape` falls from 1 to 0 as progress goes from 0 to 1. */
function decay(options: DecayOptions, shape: (progress: number) => number): LearningRateSchedule {
  expectObject("a schedule's options", options);
  const { totalSteps, warmupSteps = 0, finalFraction = 0 } = options;
  check("totalSteps", totalSteps, Number.isSafeInteger(totalSteps) && totalSteps >= 1, "a positive integer");
  check("warmupSteps", warmupSteps, warmupSteps <= totalSteps, `at most totalSteps (${totalSteps})`);
  check("finalFraction", finalFraction, finalFraction >= 0 && finalFraction <= 1, "from 0 to 1");
  return schedule(options, (step) => {
    if (step >= totalSteps) return finalFraction;
    return finalFraction + (1 - finalFraction) * shape((step - warmupSteps) / (totalSteps - warmupSteps));
  });
}

/** The warm-up, then `factor` of the rate. */
function schedule(options: WarmupOptions, factor: LearningRateSchedule): LearningRateSchedule {
  expectObject("a schedule's options", options);
  const { learningRate, warmupSteps = 0 } = options;
  check("learningRate", learningRate, learningRate >= 0 && learningRate < Infinity, "a number that is not negative");
  check(
    "warmupSteps",
    warmupSteps,
    Number.isSafeInteger(warmupSteps) && warmupSteps >= 0,
    "an integer that is not negative",
  );
  return (step) => {
    check("step", step, Number.isSafeInteger(step) && step >= 1, "a positive integer");
    return learningRate * (step <= warmupSteps ? step / warmupSteps : factor(step));
  };
}

function check(name: string, found: unknown, good: boolean, allowed: string): void {
  if (!good)
    throw new ConfigError(`${name} must be ${allowed}, not ${describe(found)}`, { details: { [name]: found } });
}
