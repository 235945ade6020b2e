// Loss spikes: a loss far above the recent ones, and the parameter whose gradient grew most with it.
import { expectInteger, expectNotNegative, expectObject } from "../core/check.ts";

/** When a loss counts as a spike. */
export interface SpikeOptions {
  /** Losses that are remembered. Default: 64. */
  readonly window?: number;
  /** Fewer losses than this are no ground to judge by. Default: 16. */
  readonly least?: number;
  /**
   * Distance from the usual loss, in standard deviations of the steps between losses (estimated robustly). Default: 8.
   */
  readonly deviations?: number;
}

/** A loss that stands out. */
export interface Spike {
  readonly loss: number;
  /** The median of the losses just before. */
  readonly usual: number;
  /** The parameter whose gradient grew most against its own past. */
  readonly module: string;
}

/** A normal distribution's standard deviation over its median absolute deviation. */
const madFactor = 1.4826;
/** How many of the last losses say what is usual. */
const recent = 9;
/** Losses nearer to the median than this share of it are never spikes. */
const leastShare = 0.05;
/** Weight of the past in the mean of a parameter's gradient norms. */
const memory = 0.9;

/** Watches the losses of a run. The same losses give the same spikes. */
export class SpikeDetector {
  readonly #window: number;
  readonly #least: number;
  readonly #deviations: number;
  #losses: number[] = [];
  #norms = new Map<string, number>();

  /** Throws ConfigError for options out of range. */
  constructor(options: SpikeOptions = {}) {
    expectObject("a spike detector's options", options);
    const { window = 64, least = 16, deviations = 8 } = options;
    expectInteger("window", window, 2);
    expectInteger("least", least, 2, window);
    expectNotNegative("deviations", deviations);
    this.#window = window;
    this.#least = least;
    this.#deviations = deviations;
  }

  /** The remembered losses: set them to go on where another detector was. */
  get losses(): readonly number[] {
    return this.#losses;
  }
  set losses(values: readonly number[]) {
    this.#losses = values.slice(-this.#window);
  }

  /** Judges a step's loss by those before, then remembers it. Losses that are not finite are left out. */
  watch(loss: number, gradNorms: () => ReadonlyMap<string, number>): Spike | undefined {
    if (!Number.isFinite(loss)) return undefined;
    // Losses fall: those just before are the measure, and how far one lies from the next tells the noise.
    const usual = median(this.#losses.slice(-recent));
    const spread = median(this.#losses.slice(1).map((l, i) => Math.abs(l - this.#losses[i]!))) * madFactor;
    const limit = Math.max(this.#deviations * spread, leastShare * Math.abs(usual));
    const norms = gradNorms();
    const spike =
      this.#losses.length >= this.#least && loss - usual > limit
        ? { loss, usual, module: this.#grewMost(norms) }
        : undefined;
    this.losses = [...this.#losses, loss];
    for (const [path, norm] of norms) {
      const before = this.#norms.get(path) ?? norm;
      if (Number.isFinite(norm)) this.#norms.set(path, memory * before + (1 - memory) * norm);
    }
    return spike;
  }

  #grewMost(norms: ReadonlyMap<string, number>): string {
    let most = { path: "the whole gradient", growth: Number.NEGATIVE_INFINITY };
    for (const [path, norm] of norms) {
      const growth = norm / ((this.#norms.get(path) ?? 0) + 1e-30);
      if (growth > most.growth) most = { path, growth };
    }
    return most.path;
  }
}

function median(values: readonly number[]): number {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
