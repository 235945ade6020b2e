// Timing with the `benchmark` package: samples of a function's time, their median and least.
import Benchmark from "benchmark";

/** Seconds of one call. On a shared machine the least is the machine's, the median what a user sees. */
export interface Timing {
  readonly median: number;
  readonly least: number;
  readonly all: readonly number[];
}

/** How long to sample. */
export interface SampleOptions {
  /** Seconds at most, but `minSamples` are always taken. */
  readonly maxTime?: number;
  readonly minSamples?: number;
}

/** The middle of a list of numbers. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Values of several functions, called in turns so many times, after one round that is not counted. */
export async function inTurns(
  rounds: number,
  functions: Readonly<Record<string, () => Promise<number>>>,
): Promise<Record<string, number[]>> {
  const entries = Object.entries<() => Promise<number>>(functions);
  const values: Record<string, number[]> = Object.fromEntries(entries.map(([name]) => [name, []]));
  for (let i = 0; i <= rounds; i++) {
    for (const [name, run] of entries) {
      const value = await run();
      if (i > 0) values[name]!.push(value);
    }
  }
  return values;
}

/** The median of a[i] / b[i]: of what was measured in turns, so that what disturbed both drops out. */
export function ratio(a: readonly number[], b: readonly number[]): number {
  return median(a.map((value, i) => value / b[i]!));
}

/** Median and least of samples in seconds. */
export function timing(samples: readonly number[]): Timing {
  return { median: median(samples), least: Math.min(...samples), all: samples };
}

/** Times a function, asynchronous or not, after one call that is not counted. */
export async function sample(
  name: string,
  run: () => unknown,
  { maxTime = 1, minSamples = 5 }: SampleOptions = {},
): Promise<Timing> {
  await run();
  return new Promise((resolve, reject) => {
    const benchmark = new Benchmark(name, {
      defer: true,
      maxTime,
      minSamples,
      fn: (deferred) => {
        Promise.resolve(run()).then(() => deferred.resolve(), reject);
      },
      onComplete: () => resolve(timing(benchmark.stats.sample)),
      onError: ({ target }) => reject(target.error),
    });
    benchmark.run({ async: true });
  });
}

/** Values of a function called so many times, after one call that is not counted. */
export async function repeat(times: number, run: () => Promise<number>): Promise<Timing> {
  await run();
  const samples: number[] = [];
  for (let i = 0; i < times; i++) samples.push(await run());
  return timing(samples);
}
