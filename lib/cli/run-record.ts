// run.json: everything that tells one run from another.
import { readMachine } from "./machine.ts";
import type { PreparedTraining } from "./prepare-training.ts";
import { version } from "./version.ts";

/** What is known besides the settings. */
export interface RunFacts {
  /** The command line without the program, as typed. */
  readonly args?: readonly string[];
  readonly started?: Date;
  /** What the plan decided: the device and precision in use, bytes, ... */
  readonly [more: string]: unknown;
}

/** The content of run.json: settings, versions, machine, seed, digests of the data. */
export async function runRecord(run: PreparedTraining, facts: RunFacts = {}): Promise<Record<string, unknown>> {
  const { system, cpu, cores, memoryBytes, simd } = await readMachine();
  const { args, started, ...more } = facts;
  const { data, dataset, settings } = run;
  return {
    name: run.name,
    started: (started ?? new Date()).toISOString(),
    args,
    versions: { meshwork: await version(), node: process.versions.node },
    machine: { system, cpu, cores, memoryBytes, simd },
    seed: settings.seed,
    settings,
    model: { config: run.configJson, weightsFrom: run.weightsFrom ?? null },
    data: {
      tokenizer: data.tokenizer?.name ?? null,
      tokens: data.tokens.length,
      samples: dataset.samples,
      heldOutSamples: dataset.validationSamples,
      files: data.files,
      skipped: data.skipped,
    },
    ...more,
  };
}
