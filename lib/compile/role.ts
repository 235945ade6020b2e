// A role: what all devices run that have the same stage and the same local shapes. Its segments are lowered once; tables,
// groups and peers differ per device.
import { dtypeSize } from "../core/dtype.ts";
import { PlanError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Graph, Node, TensorType } from "../ir/graph.ts";
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
import type { Cell, Prologue, StepOptions, StepSource } from "./step.ts";

/** What the roles are made from. */
export interface RoleInput {
  readonly source: StepSource;
  readonly options: StepOptions;
  readonly sizes: readonly number[];
  readonly micro: ReadonlyMap<number, MicroGraph>;
  readonly cells: readonly Cell[];
  readonly prologue: Prologue | null;
  readonly closing: readonly (Graph | null)[];
}

/** A result that one device fetches. */
export interface Fetch {
  readonly name: string;
  readonly view: View;
}

/** The segments of one variant of the microbatch. */
export interface Variant {
  readonly forward: number;
  readonly backward: number;
  readonly count: number;
  /** Fed inputs in their slots, by name. */
  readonly feeds: Map<string, View>;
  readonly countFeeds: Map<string, View>;
  /** Values sent and received, by the crossing's tag. */
  readonly crossings: Map<number, View>;
}

/** Builds one role: segments for a stage, lowered at a place. */
export class Role {
  readonly program: ProgramBuilder;
  readonly bound: string[] = [];
  readonly boundBytes: number[] = [];
  readonly variants: Variant[] = [];
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
  readonly #input: RoleInput;
  readonly #stage: number;
  readonly #layout: MeshLayout;
  readonly #rank: number;

  constructor(input: RoleInput, stage: number, rank: number) {
    this.#input = input;
    this.#stage = stage;
    this.#layout = input.options.layout;
    this.#rank = rank;
    this.program = new ProgramBuilder(this.#layout.sizes);
    this.#depositor = new Depositor(this.program, input.sizes.length === 1 ? "store" : "add");
    this.opening = this.program.segment("open");
    this.#openCells();
    this.#seedCells();
    this.#addVariants();
    this.seeds = this.program.segment("seed");
    if (input.prologue?.stage === stage) this.#close(input.prologue.close, this.seeds, false);
    this.closing = this.program.segment("close");
    const closing = input.closing[stage];
    if (closing) this.#close(closing, this.closing, true);
  }

  get #place(): Place {
    return this.#layout.place(this.#rank);
  }

  #ownCells(): Cell[] {
    const { cells, prologue } = this.#input;
    return [...cells, ...(prologue?.cells ?? [])].filter((c) => c.stage === this.#stage);
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
    if (prologue?.stage !== this.#stage) return;
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
        this.variants.push(this.#variant(samples, this.#layout.place(this.#rank, m)));
      }
      this.variantOf.push(known.get(key)!);
    });
  }

  #variant(samples: number, place: Place): Variant {
    const { micro, prologue } = this.#input;
    const index = this.variants.length;
    const variant: Variant = {
      forward: this.program.segment(`forward ${index}`),
      backward: this.program.segment(`backward ${index}`),
      count: this.program.segment(`count ${index}`),
      feeds: new Map(),
      countFeeds: new Map(),
      crossings: new Map(),
    };
    this.#lowerMicro(micro.get(samples)!, variant, place);
    if (prologue?.stage === this.#stage) {
      const graph = prologue.graphs.get(samples)!;
      const view = this.program.lower({
        graph,
        place,
        segmentOf: () => variant.count,
        source: (node, local) => this.#source(node, local, variant.countFeeds),
      });
      for (const { name, value } of graph.outputs)
        this.#depositor.deposit(variant.count, this.#cells.get(name)!, view(value, variant.count), name);
    }
    return variant;
  }

  #lowerMicro({ graph, staged, firstTag }: MicroGraph, variant: Variant, place: Place): void {
    const stage = this.#stage;
    const sent = new Set(staged.crossings.filter((c) => c.from === stage).map((c) => c.value));
    const segmentOf = (node: Node): number => (node.phase === "backward" ? variant.backward : variant.forward);
    const crossing = (value: number, to: number): number =>
      firstTag + staged.crossings.findIndex((c) => c.value === value && c.to === to);
    const view = this.program.lower({
      graph,
      place,
      segmentOf,
      source: (node, local) => this.#source(node, local, variant.feeds),
      mine: (n) => staged.stageOf[n] === stage,
      received: (value, local) => {
        const slot = this.program.allocate(local.dtype, local.shape, "slot");
        variant.crossings.set(crossing(value, stage), slot);
        return slot;
      },
      sent,
    });
    staged.crossings.forEach((c, i) => {
      if (c.from === stage)
        variant.crossings.set(firstTag + i, view(c.value, c.segment === "B" ? variant.backward : variant.forward));
    });
    for (const { name, value } of graph.outputs) {
      const cell = this.#cells.get(name);
      if (!cell) continue;
      const node = graph.nodes[graph.values[value]!.node]!;
      const segment = segmentOf(node);
      this.#depositor.deposit(segment, cell, view(value, segment), node.path || name);
    }
  }

  #source(node: Node, local: TensorType, feeds: Map<string, View>): View {
    if (node.op === "parameter") return this.#parameter(node.params.id as string, local);
    const name = node.params.name as string;
    const cell = this.#cells.get(name);
    if (cell) return cell;
    const input = this.#input.source.inputs.find((i) => i.name === name);
    if (!input)
      throw new PlanError(`the step reads "${name}", which is neither an input nor a result on stage ${this.#stage}`);
    const known = input.batch ? feeds.get(name) : this.scalars.get(name);
    if (known) return known;
    const view = this.program.allocate(local.dtype, local.shape, input.batch ? "slot" : "step");
    (input.batch ? feeds : this.scalars).set(name, view);
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

/** All local sizes that occur in a graph at a place: equal text means equal local shapes everywhere. */
export function signature(graph: Graph, layout: MeshLayout, place: Place): string {
  const seen = new Set<string>();
  const sizes: number[] = [];
  for (const { type, spec } of graph.values) {
    spec!.dims.forEach((axes, d) => {
      if (axes.length === 0) return;
      const n = type.shape[d]!;
      const key = `${n} ${axes.join()}`;
      if (seen.has(key)) return;
      seen.add(key);
      const { start, stop } = shardInterval(n, axes, layout.sizes, place);
      sizes.push(stop - start);
    });
  }
  return sizes.join();
}
