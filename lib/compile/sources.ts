// What the passes are told of a step: where its graphs' values come from, and how the mesh splits them.
import { PlanError } from "../core/errors.ts";
import type { Graph, Node, Phase } from "../ir/graph.ts";
import { batchAxes, type MeshLayout } from "../ir/mesh.ts";
import { replicated, type ValueSpec } from "../ir/spec.ts";
import { costOf, deviceRates } from "../passes/cost.ts";
import { hasWeightSegment } from "../passes/schedule.ts";
import type { Sequences } from "../passes/sequence.ts";
import type { StageOptions } from "../passes/stage.ts";
import { blockOfModule, stageOfModule } from "../passes/stages.ts";
import type { FixedSpecs } from "./alike.ts";
import { type GraphSources, runGraphPasses } from "./passes.ts";
import { sequenceAxis, sequencesOf, withSequenceInputs } from "./sequence.ts";
import type { Cell, StepOptions, StepSource } from "./step.ts";

/** A source whose sequences the mesh may split. */
export interface SplitSource extends StepSource {
  /** Set where cp splits them. */
  readonly sequences: Sequences | null;
  /** Inputs with the dim that runs along their sequence, where tp splits activations along it. */
  readonly scattered: ReadonlyMap<string, number> | null;
  /** A microbatch graph that the passes have run on already, by its number of samples. */
  readonly ready?: ReadonlyMap<number, Graph>;
}

/** The source with the inputs that a step with split sequences reads besides. */
export function withSequences(source: StepSource, layout: MeshLayout): SplitSource {
  const sequences = sequencesOf(source.inputs, layout);
  return { ...source, sequences, inputs: withSequenceInputs(source.inputs, sequences, layout), scattered: null };
}

/**
 * The source with sequence parallelism as it is asked for, or as it costs less. Throws PlanError where it cannot be
 * on.
 */
export function withScatter(source: SplitSource, options: StepOptions, sizes: readonly number[]): SplitSource {
  const { layout, sequenceParallel = "auto", rates = deviceRates.cpu } = options;
  const scattered = new Map(source.inputs.flatMap((i) => (i.sequence === undefined ? [] : [[i.name, i.sequence + 1]])));
  const able = layout.size("tp") > 1 && scattered.size > 0;
  if (sequenceParallel === "on" && !able) {
    const lack = scattered.size > 0 ? `mesh ${layout} has none` : "no array of the batch says where its sequence is";
    throw new PlanError(`sequence parallelism splits sequences over the axis tp: ${lack}; turn it off`);
  }
  if (sequenceParallel === "off" || !able) return source;
  if (sequenceParallel === "on") return { ...source, scattered };
  const made = [null, scattered].map((over) => {
    const own = { ...source, scattered: over };
    const graph = runGraphPasses(ofSize(source.micro, sizes[0]!), microSources(own, options), options.passes);
    return { source: { ...own, ready: new Map([[sizes[0]!, graph]]) }, cost: costOf(graph, layout.sizes, rates) };
  });
  return made[1]!.cost < made[0]!.cost ? made[1]!.source : made[0]!.source;
}

/** How microbatches' graphs are split. */
export function microSources(source: SplitSource, options: StepOptions, fixed: FixedSpecs = new Map()): GraphSources {
  return {
    ...shardSources(source, options, []),
    scattered: source.scattered,
    outputSpec: (name: string) => fixed.get(name) ?? options.cellSpecs?.get(name)?.spec ?? null,
    staysPartial: (name: string) => !fixed.has(name) && options.cellSpecs?.get(name)?.summed === false,
    wantedSpec: (name: string) => options.wantedSpecs?.get(name) ?? null,
    stages: stagesOf(options),
    recompute: {
      policy: options.recompute ?? "none",
      sizes: options.layout.sizes,
      blockOf: (path) => blockOfModule(options.stageOfBlock, path),
    },
  };
}

/** The graph of microbatches of so many samples. */
export function ofSize(graphs: ReadonlyMap<number, Graph>, samples: number): Graph {
  const graph = graphs.get(samples);
  if (graph) return graph;
  throw new PlanError(`the step has no graph for microbatches of ${samples} samples`);
}

/** How nodes are placed on the schedule's stages. */
export function stagesOf({ schedule, stageOfBlock }: StepOptions): StageOptions {
  return {
    stages: schedule.stages,
    splitsWeights: hasWeightSegment(schedule),
    stageOfPath: (path) => stageOfModule(stageOfBlock, path),
  };
}

/** How any graph of a step is split; `cells` are those it may read. */
export function shardSources(source: SplitSource, options: StepOptions, cells: readonly Cell[]): GraphSources {
  const { stages, splitsWeights, stageOfPath } = stagesOf(options);
  const part = (phase: Phase): Phase => (phase === "weights" && !splitsWeights ? "backward" : phase);
  const { usedSpecs } = options;
  const usedSpec = (node: Node): ValueSpec => {
    const id = node.params.id as string;
    return usedSpecs?.get(id) ?? parameterSpec(options, id);
  };
  return {
    layout: options.layout,
    sequences: source.sequences,
    ...(usedSpecs ? { usedSpec } : {}),
    room: ({ phase, path }) => `${part(phase)} ${stages === 1 ? 0 : path === "" ? "?" : stageOfPath(path)}`,
    layer: ({ path }) => blockOfModule(options.stageOfBlock, path) ?? path,
    sourceSpec: (node) => {
      const shape = node.params.shape as readonly number[];
      if (node.op === "parameter") return parameterSpec(options, node.params.id as string);
      const name = node.params.name as string;
      const input = source.inputs.find((i) => i.name === name);
      if (input?.batch) {
        return {
          dims: [
            batchAxes.map((a) => `${a}*`),
            ...input.shape.map((_, d) => (d === input.sequence ? [sequenceAxis] : [])),
          ],
          partial: {},
        };
      }
      if (input?.axes) return { dims: input.axes, partial: {} };
      return cells.find((c) => c.name === name)?.spec ?? replicated(shape.length);
    },
  };
}

function parameterSpec({ parameterSpecs: specs }: StepOptions, id: string): ValueSpec {
  const spec = specs.get(id);
  if (spec) return spec;
  throw new PlanError(`the step reads parameter ${id.split("@")[0]}, whose spec is not given`);
}
