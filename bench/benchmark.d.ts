// The part of the `benchmark` package that is used here.
declare module "benchmark" {
  export interface Deferred {
    resolve(): void;
  }
  export interface Options {
    readonly defer: true;
    readonly fn: (deferred: Deferred) => void;
    readonly maxTime?: number;
    readonly minTime?: number;
    readonly minSamples?: number;
    readonly onComplete?: () => void;
    readonly onError?: (event: { readonly target: { readonly error: Error } }) => void;
  }
  export default class Benchmark {
    constructor(name: string, options: Options);
    /** Times of one call in each sample, in seconds. */
    readonly stats: { readonly sample: readonly number[]; readonly rme: number };
    run(options?: { readonly async?: boolean }): this;
  }
}
