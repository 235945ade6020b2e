// What a run reports, as it goes into metrics.jsonl and, with --log json, to standard output: one object a line.
import type { RecomputePolicy } from "../passes/remat.ts";
import type { RecomputeOutcome } from "./plan.ts";
import type { OpTime } from "./profile.ts";

/** The plan, once, before the first step. */
export interface PlanEvent {
  readonly type: "plan";
  readonly devices: readonly { readonly device: string; readonly bytes: number }[];
  /** What the backward computes again, and what each policy would take. */
  readonly recompute?: RecomputePolicy;
  readonly policies?: readonly RecomputeOutcome[];
  readonly [more: string]: unknown;
}

/** A training step, counted from 1. */
export interface StepEvent {
  readonly type: "step";
  readonly step: number;
  /** Mean loss of the step's batch before its update. */
  readonly loss: number;
  /** The gradient's norm before clipping. */
  readonly gradNorm: number;
  /** The rate applied. */
  readonly learningRate: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  /**
   * The loss's terms, where there are several: weighted means; `dropped`, no part of the loss, is the share of choices
   * that found no room with their expert.
   */
  readonly terms?: Readonly<Record<string, number>>;
  /** In precision fp16: by what the loss was multiplied. A gradient that overflowed for its sake halves it. */
  readonly lossScale?: number;
  /** True where the gradient was not finite and the update was left out. */
  readonly skipped?: boolean;
  /** Where the gradient was not finite: the first module whose own is not. */
  readonly module?: string;
}

/** A loss far above those before it. */
export interface SpikeEvent {
  readonly type: "spike";
  readonly step: number;
  readonly loss: number;
  /** The median of the losses just before. */
  readonly usual: number;
  /** The parameter whose gradient grew most. */
  readonly module: string;
  readonly action: "warn" | "stop" | "rollback";
}

/** Training went back to a checkpoint and goes on with other data. */
export interface RollbackEvent {
  readonly type: "rollback";
  /** The step that was left. */
  readonly from: number;
  /** The checkpoint's step. */
  readonly to: number;
  /** Samples of the training's order that come next. */
  readonly position: number;
}

/** A checkpoint that is on the disk. */
export interface CheckpointEvent {
  readonly type: "checkpoint";
  readonly step: number;
  readonly path: string;
  readonly bytes: number;
}

/** Training goes on from a checkpoint. */
export interface ResumeEvent {
  readonly type: "resume";
  readonly step: number;
  readonly path: string;
  readonly position: number;
}

/** Something went wrong that training goes on after: a checkpoint not saved, or damaged and passed over. */
export interface WarningEvent {
  readonly type: "warning";
  readonly step: number;
  readonly message: string;
}

/** The held-out loss after a step. */
export interface EvalEvent {
  readonly type: "eval";
  readonly step: number;
  readonly loss: number;
}

/** Where the time of some steps went. */
export interface ProfileEvent {
  readonly type: "profile";
  /** The Chrome trace. */
  readonly path: string;
  readonly steps: readonly number[];
  /** All devices together, most first; `idle` is time in which a device did nothing that is recorded. */
  readonly ops: readonly OpTime[];
}

/** A text of the trained model. */
export interface SampleEvent {
  readonly type: "sample";
  readonly text: string;
}

/** The end of training. */
export interface DoneEvent {
  readonly type: "done";
  readonly steps: number;
  readonly loss: number;
  readonly out: string;
}

/** A generated token; `text` is what it completes. */
export interface TokenEvent {
  readonly type: "token";
  readonly id: number;
  readonly text: string;
}

/** The end of generation. */
export interface GeneratedEvent {
  readonly type: "done";
  /** The new ids. */
  readonly tokens: readonly number[];
  readonly text: string;
  /** Seconds. */
  readonly timeToFirstToken: number;
  readonly tokensPerSecond: number;
  /** The first next-token logits, when asked for. */
  readonly logits?: readonly number[];
}

/** Everything `meshwork train` reports. */
export type TrainEvent =
  | PlanEvent
  | StepEvent
  | EvalEvent
  | SampleEvent
  | SpikeEvent
  | RollbackEvent
  | CheckpointEvent
  | ResumeEvent
  | WarningEvent
  | ProfileEvent
  | DoneEvent;

/** Everything `meshwork generate` reports. */
export type GenerateEvent = TokenEvent | GeneratedEvent;
