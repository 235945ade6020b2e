// THE ordered pass list: what happens to every graph between tracing and lowering.
import { ProgramError } from "../core/errors.ts";
import type { Graph, Node } from "../ir/graph.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import { type ValueSpec, replicated } from "../ir/spec.ts";
import { verify } from "../ir/verify.ts";
import { getOp } from "../ops/index.ts";
import { bucketExchanges } from "../passes/bucket.ts";
import { fuseEpilogues } from "../passes/epilogue.ts";
import { fuse } from "../passes/fuse.ts";
import { gatherParameters, type Regather } from "../passes/gather.ts";
import { type Precision, placeCasts } from "../passes/precision.ts";
import { permuteSequences, type Sequences } from "../passes/sequence.ts";
import { type RematOptions, recompute } from "../passes/remat.ts";
import { shard } from "../passes/shard.ts";
import { type StageOptions, placeStages } from "../passes/stage.ts";

/** Settings of the passes. */
export interface PassOptions {
  readonly precision: Precision;
  /** Most bytes of a bucket of gradients, or of a layer's gathered parameters; defaultBucketBytes when absent. */
  readonly bucketBytes?: number;
  /** How long gathered parameters are kept; by segment when absent. */
  readonly regather?: Regather;
  /** By how many layers gathers of parameters precede their use; 0 when absent: nothing is gained without streams. */
  readonly prefetch?: number;
  /** Called with the graph after every pass, for printing. */
  readonly onPass?: (name: string, graph: Graph) => void;
  /**
   * Checks the graph before the first pass and after each; by default only where MESHWORK_VERIFY=1 (as tests set it).
   */
  readonly verify?: boolean;
  /**
   * Told the seconds that each stage of compiling took: "trace", the passes' names, "stage", "lower", "memory",
   * "encode", ...
   */
  readonly onTime?: (stage: string, seconds: number) => void;
}

/** Runs a stage of compiling and reports its time. */
export function timed<T>(options: Pick<PassOptions, "onTime">, stage: string, run: () => T): T {
  if (!options.onTime) return run();
  const began = performance.now();
  const result = run();
  options.onTime(stage, (performance.now() - began) / 1000);
  return result;
}

/** Whether graphs are checked where PassOptions do not say. */
export const verifyByDefault = process.env.MESHWORK_VERIFY === "1";

/** Where a graph's values come from. */
export interface GraphSources {
  readonly layout: MeshLayout;
  sourceSpec(node: Node): ValueSpec;
  /** Sequences that the mesh splits; null or absent where it splits none. */
  readonly sequences?: Sequences | null;
  /** Inputs with the dim that runs along their sequence, where activations are scattered along it over tp. */
  readonly scattered?: ReadonlyMap<string, number> | null;
  /** Results are brought to every device whole. */
  readonly outputsWhole?: boolean;
  /** Except these. */
  staysSplit?(name: string): boolean;
  /** Spec with which nodes read a parameter, where that is another than it lies in. */
  usedSpec?(node: Node): ValueSpec;
  /** Which nodes share gathered parameters: those of one segment and stage. */
  room?(node: Pick<Node, "path" | "phase">): string;
  /** How nodes are placed on pipeline stages, where they are. */
  readonly stages?: StageOptions;
  /** Layer of a node: the block of the model that it is in. */
  layer?(node: Node): string;
  /** What the backward computes again; nothing when absent. */
  readonly recompute?: RematOptions;
  /** Spec a result must have; null: any, partial included. */
  outputSpec?(name: string): ValueSpec | null;
  /** True for results that stay partial over the axes that do not split them. */
  staysPartial?(name: string): boolean;
  /** Spec a result would best have. */
  wantedSpec?(name: string): ValueSpec | null;
}

type Pass = (graph: Graph, sources: GraphSources, options: PassOptions) => Graph;

/** The list. Each takes a graph and returns one; nothing is hidden between them. */
export const graphPasses: readonly { readonly name: string; readonly run: Pass }[] = [
  { name: "sequence", run: (g, { sequences }) => (sequences ? permuteSequences(g, sequences) : g) },
  { name: "precision", run: (g, _, o) => placeCasts(g, o.precision) },
  {
    name: "gather",
    run: (g, { sourceSpec, usedSpec, room = phaseOf }, { regather = "segment" }) =>
      usedSpec ? gatherParameters(g, { storedSpec: sourceSpec, usedSpec, room, regather }) : g,
  },
  {
    name: "shard",
    run: (g, { room = phaseOf, scattered, ...s }) =>
      shard(g, {
        sizes: s.layout.sizes,
        sourceSpec: s.sourceSpec,
        outputSpec: (name) =>
          s.outputsWhole && !s.staysSplit?.(name) ? replicated(outputRank(g, name)) : (s.outputSpec?.(name) ?? null),
        ...(s.staysPartial ? { staysPartial: s.staysPartial } : {}),
        ...(s.wantedSpec ? { wantedSpec: s.wantedSpec } : {}),
        ...(scattered ? { scatter: { axis: scatterAxis, inputs: scattered, room } } : {}),
      }),
  },
  { name: "stage", run: (g, { stages }) => (stages ? placeStages(g, stages) : g) },
  { name: "recompute", run: (g, s) => (s.recompute ? recompute(g, s.recompute) : g) },
  { name: "fuse", run: (g) => fuse(g) },
  { name: "epilogue", run: (g) => fuseEpilogues(g) },
  {
    name: "bucket",
    run: (g, { layout, layer = ({ path }) => path }, o) =>
      bucketExchanges(g, {
        bytes: o.bucketBytes ?? defaultBucketBytes,
        prefetch: o.prefetch ?? 0,
        sizes: layout.sizes,
        layer,
      }),
  },
];

/** The axis of sequence parallelism. */
const scatterAxis = "tp";

/** PyTorch's (DistributedDataParallel, bucket_cap_mb): large enough for the links' full speed, small beside a model. */
export const defaultBucketBytes = 25 * 2 ** 20;

function phaseOf(node: Pick<Node, "phase">): string {
  return node.phase;
}

function outputRank(graph: Graph, name: string): number {
  return graph.values[graph.outputs.find((o) => o.name === name)!.value]!.type.shape.length;
}

/** Throws ProgramError naming the pass that left the graph unsound. */
function check(graph: Graph, after: string): void {
  try {
    verify(graph, getOp);
  } catch (error) {
    if (!(error instanceof ProgramError)) throw error;
    throw new ProgramError(`after ${after}: ${error.message}`, { details: error.details, cause: error });
  }
}

/** Runs the list. */
export function runGraphPasses(graph: Graph, sources: GraphSources, options: PassOptions): Graph {
  const checked = options.verify ?? verifyByDefault;
  if (checked) check(graph, "tracing");
  let g = graph;
  for (const pass of graphPasses) {
    g = timed(options, pass.name, () => pass.run(g, sources, options));
    if (checked) check(g, pass.name);
    options.onPass?.(pass.name, g);
  }
  return g;
}
