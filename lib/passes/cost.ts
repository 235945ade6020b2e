// What a sharded graph costs the device that has most to do, in seconds by a simple model: good enough to choose
// between two ways of splitting the same work.
import { dtypeSize } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import type { Graph, Node, TensorType } from "../ir/graph.ts";
import { axisName, localShape } from "../ir/spec.ts";
import { getOp } from "../ops/index.ts";

/** How fast a device is. */
export interface DeviceRates {
  /** Operations a second of products. */
  readonly flops: number;
  /** Bytes a second of memory, and to and from other devices. */
  readonly memory: number;
  readonly link: number;
  /** Seconds that a collective takes however small. */
  readonly latency: number;
}

/** Orders of magnitude: of a data centre's GPU with fast links, and of a virtual device on some cores of a CPU. */
export const deviceRates = {
  gpu: { flops: 3e14, memory: 2.5e12, link: 3e11, latency: 1e-5 },
  cpu: { flops: 1e11, memory: 1e10, link: 5e9, latency: 2e-5 },
} as const satisfies Readonly<Record<string, DeviceRates>>;

/** Rates of an engine's devices. Devices that compute nothing stand for GPUs. */
export function ratesOf(kind: string): DeviceRates {
  return kind === "cpu" ? deviceRates.cpu : deviceRates.gpu;
}

/** Bytes that a rank sends in a collective over n ranks, for each byte of the whole tensor (ring algorithms). */
const sentShare: Readonly<Record<string, (n: number) => number>> = {
  all_reduce: (n) => (2 * (n - 1)) / n,
  all_gather: (n) => (n - 1) / n,
  reduce_scatter: (n) => (n - 1) / n,
  all_to_all: (n) => (n - 1) / n,
  ring_shift: () => 1,
  broadcast_from: () => 1,
};

/** A collective node's ranks and the bytes that each sends; null for other nodes. `sizes`: the mesh's axes. */
export function traffic(
  graph: Graph,
  node: Node,
  sizes: Readonly<Record<string, number>>,
): { readonly ranks: number; readonly bytes: number } | null {
  const share = sentShare[node.op === "bucket" ? (node.params.op as string) : node.op];
  if (share === undefined) return null;
  const ranks = (node.params.axes as readonly string[]).reduce((n, axis) => n * (sizes[axisName(axis)] ?? 1), 1);
  const whole = node.inputs.reduce(
    (sum, v, i) => sum + Math.max(bytesAt(graph, v, sizes), bytesAt(graph, node.outputs[i]!, sizes)),
    0,
  );
  return { ranks, bytes: share(ranks) * whole };
}

/** Type of a value's part on the first device, which holds no less than others. */
function localType(graph: Graph, value: number, sizes: Readonly<Record<string, number>>): TensorType {
  const { type, spec } = graph.values[value]!;
  return { dtype: type.dtype, shape: localShape(type.shape, spec!, sizes, { coordinates: {}, microbatch: 0 }) };
}

function bytesAt(graph: Graph, value: number, sizes: Readonly<Record<string, number>>): number {
  const { dtype, shape } = localType(graph, value, sizes);
  return sizeOf(shape) * dtypeSize(dtype);
}

/**
 * Seconds of a graph with specs, run once by one device of a mesh. Products and memory overlap, collectives do not.
 */
export function costOf(graph: Graph, sizes: Readonly<Record<string, number>>, rates: DeviceRates): number {
  return graph.nodes.reduce((sum, node) => sum + nodeSeconds(graph, node, sizes, rates), 0);
}

/** Seconds of one node. */
export function nodeSeconds(
  graph: Graph,
  node: Node,
  sizes: Readonly<Record<string, number>>,
  rates: DeviceRates,
): number {
  const sent = traffic(graph, node, sizes);
  if (sent) return rates.latency + sent.bytes / rates.link;
  const types = (values: readonly number[]): TensorType[] => values.map((v) => localType(graph, v, sizes));
  const cost = getOp(node.op).cost(types(node.inputs), types(node.outputs), node.params);
  return Math.max(cost.flops / rates.flops, cost.bytes / rates.memory);
}
