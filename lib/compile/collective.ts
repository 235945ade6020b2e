// Programs of one collective on one-dimensional buffers: what mesh.group() runs and what the benchmarks time.
import { type DType, dtypeSize } from "../core/dtype.ts";
import type { Attribute, TableEntry } from "../ir/lowering.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import type { ReduceKind } from "../ir/spec.ts";
import { reduceKinds } from "../ops/reduction.ts";
import { runOf } from "../passes/device-action.ts";
import { type DeviceTable, encodeProgram, encodeSegments } from "../passes/encode.ts";
import { ProgramBuilder } from "../passes/lower.ts";
import { planMemory } from "../passes/memory.ts";
import type { Engine, Executable } from "../runtime/engine.ts";

/** What one device brings and gets, in elements. Counts are per rank of its group, in group order. */
export interface CollectivePart {
  readonly input: number;
  readonly output: number;
  /** all_gather, reduce_scatter: every rank's part; all_to_all: what this rank sends to each. */
  readonly counts?: readonly number[];
  /** all_to_all: what each rank sends to this one. */
  readonly joinCounts?: readonly number[];
}

/** A collective over the groups that the axes make: every device takes part, each in its own group. */
export interface CollectiveRequest {
  readonly op: "all_reduce" | "all_gather" | "reduce_scatter" | "all_to_all" | "broadcast";
  readonly axes: readonly string[];
  readonly dtype: DType;
  readonly kind: ReduceKind;
  /** broadcast: index in the group of the rank that gives. */
  readonly root: number;
  /** How often in a row a run does it (benchmarks); once by default. */
  readonly times?: number;
  /** One per device. */
  readonly parts: readonly CollectivePart[];
}

/** The words of table entries "counts" of size 0 and 1: a device's counts and joinCounts. */
function tableOf(layout: MeshLayout, rank: number, part: CollectivePart): DeviceTable {
  return {
    words: (entry) => {
      if (entry.kind === "literal") return [entry.value];
      const sent = entry.kind === "counts" && entry.size === 0;
      return [...((sent ? part.counts : part.joinCounts) ?? [])];
    },
    group: (entry) => layout.group(rank, entry.axes, entry.stages),
  };
}

function attributesOf({ op, axes, kind, root }: CollectiveRequest): Attribute[] {
  const table = (entry: TableEntry): Attribute => ({ table: entry });
  const group = table({ kind: "group", axes });
  const [counts, joinCounts] = [0, 1].map((size) => table({ kind: "counts", size, axes, outer: [] }));
  const reduction = reduceKinds.indexOf(kind);
  switch (op) {
    case "all_reduce":
      return [group, reduction];
    case "all_gather":
      return [group, 0, counts!];
    case "reduce_scatter":
      return [group, reduction, 0, counts!];
    case "all_to_all":
      return [group, 0, 0, counts!, joinCounts!];
    case "broadcast":
      return [group, table({ kind: "literal", value: root })];
  }
}

/** The program of one device: bound buffer 0 is read, bound buffer 1 written. */
function programOf(layout: MeshLayout, request: CollectiveRequest, rank: number): Int32Array {
  const part = request.parts[rank]!;
  const program = new ProgramBuilder(layout.sizes);
  const segment = program.segment(request.op);
  const [x, y] = [part.input, part.output].map((n, bound) => program.allocate(request.dtype, [n], { bound }));
  for (let i = 0; i < (request.times ?? 1); i++) {
    program.emit(segment, {
      kernel: request.op,
      inputs: [x!],
      outputs: [y!],
      attributes: attributesOf(request),
      label: request.op,
    });
  }
  const bytes = [part.input, part.output].map((n) => n * dtypeSize(request.dtype));
  const actions = [runOf(segment)];
  const code = encodeSegments(program, planMemory(program, actions), bytes);
  return encodeProgram(code, actions, tableOf(layout, rank, part), 1);
}

/** The buffers of one device, by the engine's numbers. */
export interface CollectiveBuffers {
  readonly input: number;
  readonly output: number;
}

/** A collective on buffers of the devices. */
export class LoadedCollective implements Disposable {
  readonly #engine: Engine;
  readonly #executable: Executable;

  constructor(engine: Engine, layout: MeshLayout, request: CollectiveRequest, buffers: readonly CollectiveBuffers[]) {
    this.#engine = engine;
    this.#executable = engine.load({
      programs: request.parts.map((_, rank) => programOf(layout, request, rank)),
      buffers: buffers.map(({ input, output }) => Int32Array.of(input, output)),
      inputBytes: 0,
      outputBytes: 0,
    });
  }

  /** Resolves with the seconds of the run by the devices' clock. */
  async run(): Promise<number> {
    await this.#executable.run();
    return this.#engine.stats().lastSeconds;
  }

  [Symbol.dispose](): void {
    this.#executable[Symbol.dispose]();
  }
}
