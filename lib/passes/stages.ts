// Assigns a model's blocks to pipeline stages: balanced by cost, or as the user says.
import { PlanError } from "../core/errors.ts";

/** A module that is not split over stages. */
export interface StageBlock {
  readonly path: string;
  /** What a microbatch costs in it, in any unit; not negative. */
  readonly cost: number;
}

/** Which stage each block is in. */
export interface StageAssignment {
  readonly stages: number;
  /** Blocks' paths to stages. */
  readonly stageOfBlock: ReadonlyMap<string, number>;
  /** Cost of each stage. */
  readonly costs: readonly number[];
  /** The stage of a module: that of the block that it is, or lies in; undefined when there is none. */
  stageOf(path: string): number | undefined;
}

/** Gives a module path its stage, 0 to stages - 1. */
export type StageFunction = (path: string) => number;

/**
 * Cuts the blocks, in their order, into `stages` runs so that the costliest is as cheap as can be; among such cuts the
 * most even one, and then the one with lighter first stages, which hold more microbatches at once. With a `choose`,
 * asks it instead. Throws PlanError when a stage would have no block, and for costs or stages that are no sensible
 * numbers.
 */
export function assignStages(blocks: readonly StageBlock[], stages: number, choose?: StageFunction): StageAssignment {
  checkBlocks(blocks, stages);
  const list = choose
    ? blocks.map((b) => chosenStage(b.path, stages, choose))
    : balance(
        blocks.map((b) => b.cost),
        stages,
      );
  const costs = new Array<number>(stages).fill(0);
  const counts = new Array<number>(stages).fill(0);
  blocks.forEach(({ cost }, i) => {
    costs[list[i]!]! += cost;
    counts[list[i]!]!++;
  });
  const empty = counts.flatMap((n, s) => (n === 0 ? [s] : []));
  if (empty.length > 0) {
    throw new PlanError(`no module is assigned to stage ${empty.join(", ")} of ${stages}`, {
      details: { stages, empty },
    });
  }
  const stageOfBlock = new Map(blocks.map((b, i) => [b.path, list[i]!]));
  return { stages, stageOfBlock, costs, stageOf: (path) => stageOfModule(stageOfBlock, path) };
}

function checkBlocks(blocks: readonly StageBlock[], stages: number): void {
  if (!Number.isSafeInteger(stages) || stages < 1) {
    throw new PlanError(`the number of stages must be a positive integer, not ${stages}`, { details: { stages } });
  }
  const seen = new Set<string>();
  for (const { path, cost } of blocks) {
    if (seen.has(path)) throw new PlanError(`module "${path}" is listed twice`, { details: { path } });
    if (!(cost >= 0 && cost < Infinity))
      throw new PlanError(`module "${path}" has cost ${cost}`, { details: { path, cost } });
    seen.add(path);
  }
  if (blocks.length < stages) {
    throw new PlanError(`${blocks.length} blocks cannot fill ${stages} pipeline stages; use at most ${blocks.length}`, {
      details: { stages, blocks: blocks.length },
    });
  }
}

function chosenStage(path: string, stages: number, choose: StageFunction): number {
  const stage = choose(path);
  if (Number.isInteger(stage) && stage >= 0 && stage < stages) return stage;
  throw new PlanError(`module "${path}" is assigned to stage ${stage}; stages are 0 to ${stages - 1}`, {
    details: { path, stage, stages },
  });
}

/** The stage of a module: that of the block that it is, or lies in; undefined when there is none. */
export function stageOfModule(stageOfBlock: ReadonlyMap<string, number>, path: string): number | undefined {
  const block = blockOfModule(stageOfBlock, path);
  return block === undefined ? undefined : stageOfBlock.get(block);
}

/** The block that a module is, or lies in; undefined when there is none. */
export function blockOfModule(stageOfBlock: ReadonlyMap<string, number>, path: string): string | undefined {
  for (let prefix = path; ; prefix = prefix.slice(0, prefix.lastIndexOf("."))) {
    if (stageOfBlock.has(prefix)) return prefix;
    if (!prefix.includes(".")) return undefined;
  }
}

/** Two rounds: the smallest largest cost, then the smallest sum of squares that keeps to it. */
function balance(costs: readonly number[], stages: number): number[] {
  const largest = cut(costs, stages, (whole, stage) => Math.max(whole, stage)).value;
  const { starts } = cut(costs, stages, (whole, stage) => (stage > largest ? Infinity : whole + stage * stage));
  return costs.map((_, i) => starts.findLastIndex((start) => start <= i));
}

/**
 * The cut of a list into contiguous parts that are not empty with the smallest value, and where its parts start. `join`
 * adds a last part to the value of those before it, and never makes it smaller.
 */
function cut(
  costs: readonly number[],
  parts: number,
  join: (whole: number, part: number) => number,
): { value: number; starts: number[] } {
  const sums = [0];
  for (const c of costs) sums.push(sums.at(-1)! + c);
  const n = costs.length;
  let values = sums.map((_, end) => (end === 0 ? 0 : Infinity));
  const choices: number[][] = [];
  for (let part = 0; part < parts; part++) {
    const next = values.map(() => Infinity);
    const choice = values.map(() => part);
    for (let end = part + 1; end <= n; end++) {
      for (let start = part; start < end; start++) {
        if (values[start] === Infinity) continue;
        const value = join(values[start]!, sums[end]! - sums[start]!);
        if (value < next[end]!) {
          next[end] = value;
          choice[end] = start;
        }
      }
    }
    choices.push(choice);
    values = next;
  }
  const starts: number[] = [];
  for (let part = parts - 1, end = n; part >= 0; part--) {
    end = choices[part]![end]!;
    starts.unshift(end);
  }
  return { value: values[n]!, starts };
}
