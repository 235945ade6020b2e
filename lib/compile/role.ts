// A role: what all devices run that have the same stages and the same local shapes. Its segments are lowered once;
// tables, groups and peers differ per device.
import { dtypeSize } from "../core/dtype.ts";
import { PlanError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Graph, Node, Segment, TensorType } from "../ir/graph.ts";
import type { View } from "../ir/lowering.ts";
import type { MeshLayout } from "../ir/mesh.ts";
import { localShape, type Place, shardInterval } from "../ir/spec.ts";
import { elementOps } from "../ops/kernels.ts";
import { ProgramBuilder } from "../passes/lower.ts";
import { align } from "../passes/memory.ts";
import type { MicroGraph } from "./boundary.ts";
import { Depositor } from "./deposit.ts";
import { elementType } from "./element-type.ts";
import { updateName } from "./names.ts";
import type { SplitSource } from "./sources.ts";
import type { Cell, Prologue, StepOptions } from "./step.ts";
import type { TiedCells } from "./tied.ts";

/** What the roles are made from. */
export interface RoleInput {
  readonly source: SplitSource;
  readonly options: StepOptions;
  readonly sizes: readonly number[];
  readonly micro: ReadonlyMap<number, MicroGraph>;
  readonly cells: readonly Cell[];
  readonly prologue: Prologue | null;
  /** By coordinate along pp. */
  readonly closing: readonly (Graph | null)[];
  /** Cells that are not there: what they would hold is added to another one. */
  readonly tied: TiedCells;
  /** Coordinate along pp of the devices that hold each stage. */
  readonly deviceOfStage: readonly number[];
}

/** A result that one device fetches. */
export interface Fetch {
  readonly name: string;
  readonly view: View;
}

/** The segments of one stage in one variant of the microbatch. */
export interface Variant {
  readonly segments: Readonly<Record<Segment, number>>;
  /** Fed inputs in their slots, by name. */
  readonly feeds: Map<string, View>;
  /** Values sent and received, by the crossing's tag. */
  readonly crossings: Map<number, View>;
}

/** A value that goes from one stage to another on the device. */
export interface Handover {
  readonly segment: number;
  readonly from: View;
  readonly to: View;
}

/** What one variant of the microbatch needs beside the stages' segments. */
export interface VariantShared {
  /** The prologue's count of a microbatch. */
  readonly count: number;
  readonly countFeeds: Map<string, View>;
  /** By the crossing's tag. */
  readonly handovers: Map<number, Handover>;
}

/** Builds one role: segments for the stages of a device, lowered at a place. */
export class Role {
  readonly program: ProgramBuilder;
  readonly bound: string[] = [];
  readonly boundBytes: number[] = [];
  /** By variant, then stage. */
  readonly variants: ReadonlyMap<number, Variant>[] = [];
  readonly shared: VariantShared[] = [];
  /** Variant of each microbatch. */
  readonly variantOf: number[] = [];
  readonly scalars = new Map<string, View>();
  readonly fetches: Fetch[] = [];
  cellBytes = 0;
  readonly opening: number;
  readonly seeds: number;
  readonly closing: number;
  readonly #depositor: Depositor;
  readonly #cells = new Map<string, View>();
  /** Parameters gathered once a step. */
  readonly #once = new Map<string, readonly View[]>();
  readonly #input: RoleInput;
  /** The device's coordinate along pp. */
  readonly #column: number;
  readonly stages: readonly number[];
  readonly #layout: MeshLayout;
  readonly #rank: number;

  constructor(input: RoleInput, column: number, rank: number) {
    this.#input = input;
    this.#column = column;
    this.stages = input.deviceOfStage.flatMap((device, stage) => (device === column ? [stage] : []));
    this.#layout = input.options.layout;
    this.#rank = rank;
    this.program = new ProgramBuilder(this.#layout.sizes);
    this.#depositor = new Depositor(this.program, input.sizes.length === 1 ? "store" : "add");
    this.opening = this.program.segment("open");
    this.#openCells();
    this.#seedCells();
    this.#addVariants();
    this.seeds = this.program.segment("seed");
    if (input.prologue?.column === column) this.#close(input.prologue.close, this.seeds, false);
    this.closing = this.program.segment("close");
    const closing = input.closing[column];
    if (closing) this.#close(closing, this.closing, true);
  }

  /** The stage in whose slots the prologue's inputs lie. */
  get countStage(): number {
    return this.stages[0]!;
  }

  get #place(): Place {
    return this.#layout.place(this.#rank);
  }

  #ownCells(): Cell[] {
    const { cells, prologue, tied } = this.#input;
    const all = [...cells, ...(prologue?.cells ?? [])];
    return all.filter((c) => c.column === this.#column && !tied.has(c.name));
  }

  #openCells(): void {
    for (const cell of this.#ownCells()) {
      const view = this.program.allocate(
        cell.type.dtype,
        localShape(cell.type.shape, cell.spec, this.#layout.sizes, this.#place),
        "step",
      );
      this.#cells.set(cell.name, view);
      this.cellBytes += align(sizeOf(view.dims) * dtypeSize(view.dtype));
      if (this.#input.sizes.length === 1) continue; // written once, not added to
      this.program.emit(this.opening, {
        kernel: "elementwise",
        inputs: [],
        outputs: [view],
        attributes: [1, elementOps.const.code, elementType(view.dtype), { float: 0 }, 0, 0, 1, 0],
        label: cell.name,
      });
    }
  }

  /** Memory of what the prologue gives the microbatches, whole on every device. */
  #seedCells(): void {
    const { prologue } = this.#input;
    if (prologue?.column !== this.#column) return;
    for (const { name, value } of prologue.close.outputs) {
      const { type } = prologue.close.values[value]!;
      this.#cells.set(name, this.program.allocate(type.dtype, type.shape, "step"));
    }
  }

  #addVariants(): void {
    const { sizes, micro } = this.#input;
    const known = new Map<string, number>();
    sizes.forEach((samples, m) => {
      const key = `${samples} ${signature(micro.get(samples)!.graph, this.#layout, this.#layout.place(this.#rank, m))}`;
      if (!known.has(key)) {
        known.set(key, this.variants.length);
        this.program.variant = this.variants.length;
        this.#addVariant(samples, this.#layout.place(this.#rank, m));
      }
      this.variantOf.push(known.get(key)!);
    });
  }

  #addVariant(samples: number, place: Place): void {
    const { micro, prologue } = this.#input;
    const own = new Map(this.stages.map((stage) => [stage, this.#lowerStage(micro.get(samples)!, stage, place)]));
    this.program.stage = this.countStage;
    const shared: VariantShared = {
      count: this.program.segment(`count ${this.variants.length}`),
      countFeeds: new Map(),
      handovers: this.#handovers(micro.get(samples)!, own),
    };
    this.variants.push(own);
    this.shared.push(shared);
    if (prologue?.column !== this.#column) return;
    const graph = prologue.graphs.get(samples)!;
    const view = this.program.lower({
      graph,
      place,
      segmentOf: () => shared.count,
      source: (node, local) => this.#source(node, local, shared.countFeeds),
    });
    for (const { name, value } of graph.outputs)
      this.#depositor.deposit(shared.count, this.#cells.get(name)!, view(value, shared.count), name);
  }

  #lowerStage({ graph, crossings, firstTag }: MicroGraph, stage: number, place: Place): Variant {
    this.program.stage = stage;
    const name = `${stage} ${this.variants.length}`;
    const segments = {
      F: this.program.segment(`forward ${name}`, "F"),
      B: this.program.segment(`backward ${name}`, "B"),
      W: this.program.segment(`weights ${name}`, "W"),
    };
    const variant: Variant = { segments, feeds: new Map(), crossings: new Map() };
    const segmentOf = (node: Node): number => segments[node.segment!];
    const view = this.program.lower({
      graph,
      place,
      segmentOf,
      source: (node, local) => this.#source(node, local, variant.feeds),
      mine: (n) => graph.nodes[n]!.stage === stage,
      received: (value, local) => {
        const slot = this.program.allocate(local.dtype, local.shape, "slot");
        variant.crossings.set(firstTag + crossings.findIndex((c) => c.value === value && c.to === stage), slot);
        return slot;
      },
      once: { segment: this.opening, made: this.#once },
      sent: new Set(crossings.filter((c) => c.from === stage).map((c) => c.value)),
    });
    crossings.forEach((c, i) => {
      if (c.from === stage) variant.crossings.set(firstTag + i, view(c.value, segments[c.segment]));
    });
    for (const { name: result, value } of graph.outputs) {
      const cell = this.#cells.get(result);
      const node = graph.nodes[graph.values[value]!.node]!;
      if (!cell || (node.stage! < 0 ? this.#input.deviceOfStage.length - 1 : node.stage) !== stage) continue;
      const segment = segmentOf(node);
      const label = node.path || result;
      const other = this.#tiedTo(graph, result);
      const made = view(value, segment);
      if (other === undefined) this.#depositor.deposit(segment, cell, made, label);
      else this.#depositor.depositSum(segment, cell, [made, view(other, segment)], label);
    }
    return variant;
  }

  /** The result that is added to another one's cell. */
  #tiedTo({ outputs }: Graph, kept: string): number | undefined {
    return outputs.find(({ name }) => this.#input.tied.get(name) === kept)?.value;
  }

  /** Copies of what crosses between two stages of this device. */
  #handovers({ crossings, firstTag }: MicroGraph, own: ReadonlyMap<number, Variant>): Map<number, Handover> {
    const out = new Map<number, Handover>();
    crossings.forEach((c, i) => {
      const tag = firstTag + i;
      const from = own.get(c.from)?.crossings.get(tag);
      const to = own.get(c.to)?.crossings.get(tag);
      if (!from || !to || sizeOf(to.dims) === 0) return;
      out.set(tag, { segment: this.program.handover(from, to, ""), from, to });
    });
    return out;
  }

  #source(node: Node, local: TensorType, feeds: Map<string, View>): View {
    if (node.op === "parameter") return this.#parameter(node.params.id as string, local);
    const name = node.params.name as string;
    const cell = this.#cells.get(name);
    if (cell) return cell;
    const input = this.#input.source.inputs.find((i) => i.name === name);
    if (!input)
      throw new PlanError(`the step reads "${name}", which is neither an input nor a result on pp=${this.#column}`);
    const known = input.batch ? feeds.get(name) : this.scalars.get(name);
    if (known) return known;
    const view = this.program.allocate(local.dtype, local.shape, input.batch ? "slot" : "step");
    (input.batch ? feeds : this.scalars).set(name, view);
    if (input.batch) this.program.buffers[view.buffer]!.fedFor.add("F");
    return view;
  }

  #parameter(id: string, local: TensorType): View {
    let index = this.bound.indexOf(id);
    if (index < 0) {
      index = this.bound.length;
      this.bound.push(id);
      this.boundBytes.push(sizeOf(local.shape) * dtypeSize(local.dtype));
    }
    return this.program.allocate(local.dtype, local.shape, { bound: index });
  }

  /** Lowers a closing graph: its outputs become cells (for the prologue) or results to fetch. */
  #close(graph: Graph, segment: number, fetch: boolean): void {
    this.program.variant = 0;
    const view = this.program.lower({
      graph,
      place: this.#place,
      segmentOf: () => segment,
      source: (node, local) => this.#source(node, local, new Map()),
    });
    for (const { name, value } of graph.outputs) {
      const result = view(value, segment);
      if (name.startsWith(updateName)) continue;
      const kept = fetch ? this.program.allocate(result.dtype, result.dims, "step") : this.#cells.get(name)!;
      this.program.copy(segment, result, kept, name);
      if (fetch) this.fetches.push({ name, view: kept });
    }
  }
}

/** The ways in which a graph splits dims: sizes with the axes that split them, each once. */
const splits = new WeakMap<Graph, readonly (readonly [size: number, axes: readonly string[]])[]>();

function splitsOf(graph: Graph): readonly (readonly [number, readonly string[]])[] {
  const known = splits.get(graph);
  if (known) return known;
  const found = new Map<string, readonly [number, readonly string[]]>();
  for (const { type, spec } of graph.values) {
    spec!.dims.forEach((axes, d) => {
      if (axes.length > 0) found.set(`${type.shape[d]} ${axes.join()}`, [type.shape[d]!, axes]);
    });
  }
  const list = [...found.values()];
  splits.set(graph, list);
  return list;
}

/** All local sizes that occur in a graph at a place: equal text means equal local shapes everywhere. */
export function signature(graph: Graph, layout: MeshLayout, place: Place): string {
  return splitsOf(graph)
    .map(([size, axes]) => {
      const { start, stop } = shardInterval(size, axes, layout.sizes, place);
      return stop - start;
    })
    .join();
}
