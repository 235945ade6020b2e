// All seeded mistakes, and the tests that are to find them.
import { compilerMutants } from "./compiler.ts";
import type { Mutant } from "./mutant.ts";
import { nativeMutants } from "./native.ts";
import { pipelineMutants } from "./pipeline.ts";

/** Those of native code last: they share a build. */
export const mutants: readonly Mutant[] = [...compilerMutants, ...pipelineMutants, ...nativeMutants];

/** The test files, for every mutant the same, run in this order until the first failure: quick ones first. */
export const testFiles: readonly string[] = [
  "test/passes/actions.test.ts",
  "test/passes/prove.test.ts",
  "test/passes/memory.test.ts",
  "test/passes/schedule.test.ts",
  "test/passes/bucket.test.ts",
  "test/passes/fuse.test.ts",
  "test/passes/stages.test.ts",
  "test/optim/optimizer.test.ts",
  "test/train/by-hand.test.ts",
  "test/tensor/grad.test.ts",
  "test/tensor/group.test.ts",
  "test/nn/models.test.ts",
  "test/errors/non-finite.test.ts",
  "test/train/zero.test.ts",
  "test/train/sequence.test.ts",
  "test/parallel/experts.test.ts",
  "test/checkpoint/layouts.test.ts",
  "test/parallel/training.test.ts",
  "test/parallel/schedules.test.ts",
];
