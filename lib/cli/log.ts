// What a verb shows: JSON lines for programs, or progress for people, live only on a terminal.
import type { DoneEvent, GenerateEvent, GeneratedEvent, PlanEvent, StepEvent, TrainEvent } from "../train/events.ts";
import type { CliIo, Output } from "./io.ts";

/** How output is asked for. */
export interface LogOptions {
  readonly log: "text" | "json";
  readonly io: CliIo;
  /** Steps of the run, for the time left. */
  readonly steps?: number;
  /** The clock in seconds; for tests. */
  readonly now?: () => number;
}

/** Takes events as they come. */
export interface Log {
  event(event: TrainEvent | GenerateEvent): void;
  /** A line for people, on standard error; nothing with --log json. */
  note(text: string): void;
  /** Ends a live line, before an error is shown. */
  close(): void;
}

/** The log for `--log text` or `--log json`. */
export function createLog(options: LogOptions): Log {
  return options.log === "json" ? new JsonLog(options.io.stdout) : new TextLog(options);
}

/** One object a line, numbers in full precision; those that are not finite become null. */
export function eventLine(event: object): string {
  return `${JSON.stringify(event)}\n`;
}

class JsonLog implements Log {
  readonly #out: Output;

  constructor(out: Output) {
    this.#out = out;
  }

  event(event: TrainEvent | GenerateEvent): void {
    this.#out.write(eventLine(event));
  }

  note(): void {}

  close(): void {}
}

/** Lines that a run without a terminal prints for its steps, about. */
const LINES = 20;
/** How often a live line is drawn again, in seconds. */
const REDRAW = 0.1;

class TextLog implements Log {
  readonly #out: Output;
  readonly #err: Output;
  readonly #steps: number | undefined;
  readonly #now: () => number;
  readonly #live: boolean;
  #lineOpen = false;
  #drawn = Number.NEGATIVE_INFINITY;
  #started: number | undefined;
  #streaming = false;

  constructor({ io, steps, now }: LogOptions) {
    this.#out = io.stdout;
    this.#err = io.stderr;
    this.#steps = steps;
    this.#now = now ?? (() => performance.now() / 1000);
    this.#live = io.stderr.isTTY === true;
  }

  event(event: TrainEvent | GenerateEvent): void {
    switch (event.type) {
      case "plan":
        this.note(planText(event));
        break;
      case "step":
        this.#step(event);
        break;
      case "eval":
        this.note(`step ${event.step}: held-out loss ${event.loss.toFixed(4)}`);
        break;
      case "spike":
        this.note(
          `step ${event.step}: the loss is ${event.loss.toFixed(4)} where ${event.usual.toFixed(4)} was usual; ` +
            `the gradient of ${event.module} grew most`,
        );
        break;
      case "rollback":
        this.note(`went back from step ${event.from} to the checkpoint of step ${event.to}, past that batch`);
        break;
      case "resume":
        this.note(`resuming after step ${event.step} from ${event.path}`);
        break;
      case "warning":
        this.note(`warning: ${event.message}`);
        break;
      case "checkpoint":
        if (!this.#live) this.note(`step ${event.step}: checkpoint ${event.path}, ${bytesText(event.bytes)}`);
        break;
      case "sample":
        this.note("a sample of the trained model:");
        this.#out.write(`${event.text}\n`);
        break;
      case "token":
        this.#streaming = true;
        this.#out.write(event.text);
        break;
      case "done":
        if ("steps" in event) this.#trained(event);
        else this.#generated(event);
        break;
    }
  }

  note(text: string): void {
    this.close();
    this.#err.write(`${text}\n`);
  }

  close(): void {
    if (this.#lineOpen) this.#err.write("\n");
    this.#lineOpen = false;
  }

  #step(event: StepEvent): void {
    this.#started ??= this.#now() - event.seconds;
    const last = event.step === this.#steps;
    const overflowed = (event.lossScale ?? 1) > 1; // train says it, with the scale
    if (event.skipped === true && !overflowed)
      this.note(`step ${event.step}: the gradient is not finite; its update was left out`);
    if (this.#live) {
      if (!last && this.#now() - this.#drawn < REDRAW) return;
      this.#drawn = this.#now();
      this.#err.write(`\r\x1b[K${this.#fit(this.#stepText(event))}`);
      this.#lineOpen = true;
      return;
    }
    const every = Math.max(1, Math.ceil((this.#steps ?? 1) / LINES));
    if (event.step === 1 || last || event.step % every === 0) this.#err.write(`${this.#stepText(event)}\n`);
  }

  #stepText(event: StepEvent): string {
    const width = String(this.#steps ?? event.step).length;
    const of = this.#steps === undefined ? "" : `/${this.#steps}`;
    const parts = [
      `step ${String(event.step).padStart(width)}${of}`,
      `loss ${event.loss.toFixed(4)}`,
      `norm ${event.gradNorm.toFixed(3)}`,
      `rate ${event.learningRate.toExponential(2)}`,
      `${countText(event.tokensPerSecond)} tokens/s`,
    ];
    const dropped = event.terms?.dropped;
    if (dropped !== undefined) parts.push(`dropped ${(100 * dropped).toFixed(2)} %`);
    const left = this.#secondsLeft(event);
    if (left !== undefined && left > 0) parts.push(`${durationText(left)} left`);
    return parts.join("  ");
  }

  /** From the mean of all steps so far, waits and evaluations included. */
  #secondsLeft(event: StepEvent): number | undefined {
    if (this.#steps === undefined || this.#started === undefined) return undefined;
    const remaining = this.#steps - event.step;
    return (remaining * (this.#now() - this.#started)) / Math.max(1, event.step);
  }

  #fit(text: string): string {
    return text.slice(0, Math.max(20, (this.#err.columns ?? 120) - 1));
  }

  #trained(event: DoneEvent): void {
    const took = this.#started === undefined ? "" : ` in ${durationText(this.#now() - this.#started)}`;
    this.note(`done: ${event.steps} steps${took}, loss ${event.loss.toFixed(4)}`);
    this.#out.write(`${event.out}\n`);
  }

  #generated(event: GeneratedEvent): void {
    this.#out.write(this.#streaming ? "\n" : `${event.text}\n`);
    const speed = `${countText(event.tokensPerSecond)} tokens/s`;
    this.note(`${event.tokens.length} tokens, the first after ${event.timeToFirstToken.toFixed(2)} s, ${speed}`);
  }
}

function planText({ devices, recompute, policies = [] }: PlanEvent): string {
  const sizes = devices.map(({ bytes }) => bytes);
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  const each = least === most ? bytesText(least) : `${bytesText(least)} to ${bytesText(most)}`;
  const count = devices.length === 1 ? `one device (${devices[0]!.device})` : `${devices.length} devices`;
  const line = `plan: ${count}, ${each}${devices.length === 1 ? "" : " each"}`;
  if (policies.length === 0) return line;
  const outcomes = policies.map(({ policy, largestBytes, seconds }) => {
    const taken = policy === recompute ? " (taken)" : "";
    return `${policy} ${bytesText(largestBytes)}, about ${seconds.toPrecision(2)} s${taken}`;
  });
  return `${line}\nrecomputation, on the fullest device: ${outcomes.join("; ")}`;
}

/** Bytes with a binary unit: `1.5 MiB`. */
export function bytesText(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, bytes)) / 10)));
  return `${(bytes / 2 ** (10 * power)).toFixed(power === 0 ? 0 : 1)} ${units[power]}`;
}

/** A count in three digits or so: `8258`, `12.3k`, `1.25M`. */
export function countText(count: number): string {
  if (!(count >= 10_000)) return Number.isFinite(count) ? count.toFixed(count < 10 ? 2 : 0) : String(count);
  return count < 1e6 ? `${(count / 1e3).toFixed(1)}k` : `${(count / 1e6).toFixed(2)}M`;
}

/** Seconds as `42s`, `3m05s`, `2h07m`. */
export function durationText(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number) => String(value).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m${two(whole % 60)}s`;
  return `${Math.floor(whole / 3600)}h${two(Math.floor((whole % 3600) / 60))}m`;
}
