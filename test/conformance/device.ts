// Runs a Graph on the devices of an engine through the compiler's own passes: shard, lower, plan, encode.
import { deviceTable } from "../../lib/compile/device-table.ts";
import { dtypeSize, fromStorage, storageView, toStorage } from "../../lib/core/dtype.ts";
import { sizeOf } from "../../lib/core/shape.ts";
import type { Graph, Node } from "../../lib/ir/graph.ts";
import type { View } from "../../lib/ir/lowering.ts";
import type { MeshLayout } from "../../lib/ir/mesh.ts";
import { replicated, shardInterval, type ValueSpec } from "../../lib/ir/spec.ts";
import { verify } from "../../lib/ir/verify.ts";
import { getOp } from "../../lib/ops/index.ts";
import { type Action, runOf } from "../../lib/passes/device-action.ts";
import { encodeProgram, encodeSegments } from "../../lib/passes/encode.ts";
import { ProgramBuilder } from "../../lib/passes/lower.ts";
import { align, planMemory } from "../../lib/passes/memory.ts";
import { proveMemory } from "../../lib/passes/prove-memory.ts";
import { shard } from "../../lib/passes/shard.ts";
import type { Engine } from "../../lib/runtime/engine.ts";
import { type Dense, dense, narrow } from "./dense.ts";
import type { Feeds } from "./evaluate.ts";

/** Spec of each fed value and output, by name; those that are missing are whole everywhere. */
export type Specs = ReadonlyMap<string, ValueSpec>;

function nameOf(node: Node): string {
  return (node.op === "input" ? node.params.name : node.params.id) as string;
}

/** The part of a fed value that a device holds. */
export function localPart(x: Dense, spec: ValueSpec, layout: MeshLayout, rank: number): Dense {
  return spec.dims.reduce((y, axes, d) => {
    if (axes.length === 0) return y;
    const { start, stop } = shardInterval(x.shape[d]!, axes, layout.sizes, layout.place(rank));
    return narrow(y, d, start, stop);
  }, x);
}

/** One device's program with its bound values and, by output, where in the staging memory its results go. */
interface DeviceProgram {
  readonly words: Int32Array;
  readonly bound: readonly Dense[];
  /** Local shapes of the outputs. */
  readonly shapes: readonly (readonly number[])[];
}

interface Staging {
  readonly offsets: readonly number[];
  readonly bytes: number;
}

/** Room for every output of every device. */
function stagingOf(graph: Graph, devices: number): Staging {
  const offsets: number[] = [];
  let bytes = 0;
  for (let rank = 0; rank < devices; rank++) {
    for (const { value } of graph.outputs) {
      const { dtype, shape } = graph.values[value]!.type;
      offsets.push(bytes);
      bytes += align(sizeOf(shape) * dtypeSize(dtype));
    }
  }
  return { offsets, bytes };
}

function compileFor(graph: Graph, feeds: Feeds, layout: MeshLayout, rank: number, staging: Staging): DeviceProgram {
  const program = new ProgramBuilder(layout.sizes);
  const segment = program.segment("case");
  const bound: Dense[] = [];
  const source = (node: Node, _: unknown, spec: ValueSpec): View => {
    bound.push(localPart(feeds.get(nameOf(node))!, spec, layout, rank));
    const { dtype, shape } = bound.at(-1)!;
    return program.allocate(dtype, shape, { bound: bound.length - 1 });
  };
  const viewOf = program.lower({ graph, place: layout.place(rank), segmentOf: () => segment, source });
  const actions: Action[] = [runOf(segment)];
  const shapes = graph.outputs.map(({ value }, i) => {
    const view = viewOf(value, segment);
    const whole = program.allocate(view.dtype, view.dims, "step");
    program.copy(segment, view, whole, "");
    const bytes = sizeOf(view.dims) * dtypeSize(view.dtype);
    const stagingOffset = staging.offsets[rank * graph.outputs.length + i]!;
    if (bytes > 0) actions.push({ kind: "fetch", stagingOffset, view: whole, bytes });
    return view.dims;
  });
  const sizes = bound.map((x) => x.data.length * dtypeSize(x.dtype));
  const plan = planMemory(program, actions);
  proveMemory(program, actions, plan);
  const code = encodeSegments(program, plan, sizes);
  return { words: encodeProgram(code, actions, deviceTable(layout, rank), 1), bound, shapes };
}

/**
 * Runs the graph on all devices of the engine (one for each rank of the layout) with fed values and outputs split as
 * `specs` say (by name; whole where they say nothing), `times` times. Returns each device's outputs, in the graph's
 * order. Throws when two runs differ in a bit. `after` is a pass that follows sharding.
 */
export async function runOnDevices(
  engine: Engine,
  layout: MeshLayout,
  graph: Graph,
  feeds: Feeds,
  specs: Specs = new Map(),
  times = 1,
  after: (sharded: Graph) => Graph = (sharded) => sharded,
): Promise<Dense[][]> {
  const specOf = (node: Node): ValueSpec =>
    specs.get(nameOf(node)) ?? replicated(feeds.get(nameOf(node))!.shape.length);
  const rankOf = new Map(graph.outputs.map(({ name, value }) => [name, graph.values[value]!.type.shape.length]));
  const outputSpec = (name: string): ValueSpec => specs.get(name) ?? replicated(rankOf.get(name)!);
  const sharded = shard(graph, { sizes: layout.sizes, sourceSpec: specOf, outputSpec });
  return runSharded(engine, layout, after(sharded), feeds, times);
}

/** The same for a graph whose values have specs already. A fed partial value is given whole to every device. */
export async function runSharded(
  engine: Engine,
  layout: MeshLayout,
  graph: Graph,
  feeds: Feeds,
  times = 1,
): Promise<Dense[][]> {
  verify(graph, getOp);
  const staging = stagingOf(graph, layout.devices);
  const programs = Array.from({ length: layout.devices }, (_, r) => compileFor(graph, feeds, layout, r, staging));
  const buffers = programs.map(({ bound }, r) =>
    bound.map((x) => engine.allocate(r, x.data.length * dtypeSize(x.dtype))),
  );
  const fill = (): void => {
    programs.forEach(({ bound }, r) => {
      bound.forEach((x, i) => {
        if (x.data.length > 0) engine.write(buffers[r]![i]!, toStorage(x.dtype, x.data));
      });
    });
  };
  using executable = engine.load({
    programs: programs.map(({ words }) => words),
    buffers: buffers.map((list) => Int32Array.from(list)),
    inputBytes: 0,
    outputBytes: staging.bytes,
  });
  let first: Uint8Array | undefined;
  for (let k = 0; k < times; k++) {
    fill();
    const bytes = await executable.run();
    if (first !== undefined && Buffer.compare(first, bytes) !== 0)
      throw new Error(`run ${k + 1} gave other bits than run 1`);
    first = bytes.slice();
  }
  for (const list of buffers) for (const buffer of list) engine.free(buffer);
  return programs.map(({ shapes }, r) =>
    graph.outputs.map(({ value }, i) => {
      const { dtype } = graph.values[value]!.type;
      const shape = shapes[i]!;
      const offset = staging.offsets[r * graph.outputs.length + i]!;
      return dense(
        dtype,
        shape,
        fromStorage(dtype, storageView(dtype, first!.buffer, first!.byteOffset + offset, sizeOf(shape))),
      );
    }),
  );
}
