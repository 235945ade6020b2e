// What a run reports, as it goes into metrics.jsonl and, with --log json, to standard output: one object a line.

/** The plan, once, before the first step. */
export interface PlanEvent {
  readonly type: "plan";
  readonly devices: readonly { readonly device: string; readonly bytes: number }[];
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
  /** True where the gradient was not finite and the update was left out. */
  readonly skipped?: boolean;
}

/** The held-out loss after a step. */
export interface EvalEvent {
  readonly type: "eval";
  readonly step: number;
  readonly loss: number;
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
export type TrainEvent = PlanEvent | StepEvent | EvalEvent | SampleEvent | DoneEvent;

/** Everything `meshwork generate` reports. */
export type GenerateEvent = TokenEvent | GeneratedEvent;
