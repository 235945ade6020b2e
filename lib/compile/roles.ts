// Programs for all devices of a compiled step: devices that run the same segments on the same local shapes play one role,
// whose segments are lowered and encoded once; tables, groups and peers differ per device.
import { dtypeSize } from "../core/dtype.ts";
import { PlanError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Graph, Node, TensorType } from "../ir/graph.ts";
import type { TableEntry, View } from "../ir/lowering.ts";
import { type MeshLayout, batchAxes } from "../ir/mesh.ts";
import { type Place, type ValueSpec, axisName, localShape, shardInterval } from "../ir/spec.ts";
import { elementOps } from "../ops/kernels.ts";
import { type StageAction, pipelineActions } from "../passes/actions.ts";
import { type Action, type DeviceTable, encodeProgram, encodeSegments } from "../passes/encode.ts";
import { ProgramBuilder } from "../passes/lower.ts";
import { planMemory } from "../passes/memory.ts";
import { prove } from "../passes/prove.ts";
import { type MicroGraph, boundaryOf } from "./boundary.ts";
import { Depositor } from "./deposit.ts";
import { elementType } from "./element-type.ts";
import { refuseIdleDevices } from "./idle.ts";
import { updateName } from "./names.ts";
import { stagingLayout } from "./staging.ts";
import type { Cell, CompiledStep, DevicePlan, Prologue, StagingEntry, StepOptions, StepSource } from "./step.ts";

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
interface Fetch {
  readonly name: string;
  readonly view: View;
}

/** The segments of one variant of the microbatch. */
interface Variant {
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
class Role {
  readonly program: ProgramBuilder;
  readonly bound: string[] = [];
  readonly boundBytes: number[] = [];
  readonly variants: Variant[] = [];
  /** Variant of each microbatch. */
  readonly variantOf: number[] = [];
  readonly scalars = new Map<string, View>();
  readonly fetches: Fetch[] = [];
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
        source: (node, local, spec) => this.#source(node, local, spec, variant.countFeeds),
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
      source: (node, local, spec) => this.#source(node, local, spec, variant.feeds),
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

  #source(node: Node, local: TensorType, spec: ValueSpec, feeds: Map<string, View>): View {
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
    if (spec.dims.slice(1).some((axes) => axes.length > 0)) {
      throw new PlanError(`input ${name} is split beyond its samples, which this version cannot feed`);
    }
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
      source: (node, local, spec) => this.#source(node, local, spec, new Map()),
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
function signature(graph: Graph, layout: MeshLayout, place: Place): string {
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

/** Builds and encodes the programs of all devices. */
export function assemblePrograms(input: RoleInput): CompiledStep {
  const { options, source, sizes } = input;
  const { layout } = options;
  const stages = layout.size("pp");
  if (options.refuseIdle) refuseIdleDevices(input);
  const planned = pipelineActions(options.schedule(stages, sizes.length), boundaryOf(input.micro));
  prove(planned.devices, { microbatches: sizes.length, slots: planned.slots });
  const staging = stagingLayout(
    source.inputs.map((i) => ({
      name: i.name,
      dtype: i.dtype,
      shape: i.batch ? [options.batchSize, ...i.shape] : i.shape,
    })),
  );
  const roles = new Map<string, { role: Role; code: ReturnType<typeof encodeSegments> }>();
  const outputs = new OutputStaging();
  const programs: Int32Array[] = [];
  const bindings: string[][] = [];
  const devices: DevicePlan[] = [];
  for (let rank = 0; rank < layout.devices; rank++) {
    const stage = layout.coordinates(rank).pp ?? 0;
    const key = `${stage} ${roleKey(input, rank)}`;
    let known = roles.get(key);
    if (!known) {
      const role = new Role(input, stage, rank);
      const plan = planMemory(role.program, Math.max(1, planned.slots[stage]!));
      known = { role, code: encodeSegments(role.program, plan, role.boundBytes) };
      roles.set(key, known);
    }
    const { role, code } = known;
    const actions = deviceActions(input, role, rank, planned.devices[stage]!, staging.entries, outputs);
    programs.push(encodeProgram(code, actions, deviceTable(layout, rank), sizes.length));
    bindings.push(role.bound);
    devices.push(devicePlan(role, code.plan, rank, stage));
  }
  return {
    programs,
    bindings,
    inputs: staging.entries,
    inputBytes: staging.bytes,
    outputs: outputs.entries,
    outputBytes: outputs.bytes,
    devices,
    cells: input.cells,
  };
}

function roleKey(input: RoleInput, rank: number): string {
  const { layout } = input.options;
  const parts = input.sizes.map((n, m) => signature(input.micro.get(n)!.graph, layout, layout.place(rank, m)));
  const closing = input.closing.map((g) => (g ? signature(g, layout, layout.place(rank)) : ""));
  return [...parts, ...closing].join(";");
}

function devicePlan(role: Role, plan: ReturnType<typeof planMemory>, rank: number, stage: number): DevicePlan {
  return {
    rank,
    stage,
    arenaBytes: plan.arenaBytes,
    stepBytes: plan.stepBytes,
    slotBytes: plan.slotBytes,
    slots: plan.slots,
    scratchBytes: plan.scratchBytes,
    boundBytes: role.boundBytes.reduce((a, b) => a + Math.ceil(b / 64) * 64, 0),
    instructions: role.program.segments.reduce((n, s) => n + s.instructions.length, 0),
  };
}

class OutputStaging {
  readonly entries: StagingEntry[] = [];
  bytes = 0;
  readonly #owner = new Map<string, number>();

  /** Offset of a result, if this device is the one to fetch it (the first that offers it). */
  claim(name: string, view: View, rank: number): number | undefined {
    const owner = this.#owner.get(name);
    if (owner !== undefined) return undefined;
    this.#owner.set(name, rank);
    const offset = this.bytes;
    const bytes = sizeOf(view.dims) * dtypeSize(view.dtype);
    this.entries.push({ name, dtype: view.dtype, shape: view.dims, offset, bytes });
    this.bytes += Math.ceil(bytes / 64) * 64;
    return offset;
  }
}

function deviceActions(
  input: RoleInput,
  role: Role,
  rank: number,
  planned: readonly StageAction[],
  staging: readonly StagingEntry[],
  outputs: OutputStaging,
): Action[] {
  const { options, sizes, source } = input;
  const { layout } = options;
  const actions: Action[] = [];
  const entry = (name: string): StagingEntry => staging.find((e) => e.name === name)!;
  const run = (segment: number, slot: number, microbatch: number): void => {
    if (role.program.segments[segment]!.instructions.length > 0)
      actions.push({ kind: "run", segment, slot, microbatch });
  };
  const feed = (views: ReadonlyMap<string, View>, microbatch: number, slot: number): void => {
    for (const [name, view] of views) {
      const shape = source.inputs.find((i) => i.name === name)!.shape;
      const row = sizeOf(shape) * dtypeSize(view.dtype);
      const first = sizes.slice(0, microbatch).reduce((a, b) => a + b, 0);
      const part = shardInterval(
        sizes[microbatch]!,
        batchAxes.map((a) => `${a}*`),
        layout.sizes,
        layout.place(rank, microbatch),
      );
      const bytes = (part.stop - part.start) * row;
      if (bytes > 0)
        actions.push({
          kind: "feed",
          stagingOffset: entry(name).offset + (first + part.start) * row,
          view,
          bytes,
          slot,
        });
    }
  };
  for (const [name, view] of role.scalars) {
    actions.push({ kind: "feed", stagingOffset: entry(name).offset, view, bytes: entry(name).bytes, slot: 0 });
  }
  run(role.opening, 0, 0);
  if (input.prologue && role.program.segments[role.seeds]!.instructions.length > 0) {
    sizes.forEach((_, m) => {
      const variant = role.variants[role.variantOf[m]!]!;
      feed(variant.countFeeds, m, 0);
      run(variant.count, 0, m);
    });
    run(role.seeds, 0, 0);
  }
  stageActions(role, layout, rank, planned, { actions, feed, run });
  run(role.closing, 0, 0);
  for (const { name, view } of role.fetches) {
    const offset = outputs.claim(name, view, rank);
    if (offset === undefined) continue;
    const bytes = sizeOf(view.dims) * dtypeSize(view.dtype);
    if (bytes > 0) actions.push({ kind: "fetch", stagingOffset: offset, view, bytes });
  }
  return actions;
}

interface ActionSink {
  readonly actions: Action[];
  feed(views: ReadonlyMap<string, View>, microbatch: number, slot: number): void;
  run(segment: number, slot: number, microbatch: number): void;
}

/** Turns a stage's planned actions into this device's: its variants' segments, its peers; transfers of nothing fall away. */
function stageActions(
  role: Role,
  layout: MeshLayout,
  rank: number,
  planned: readonly StageAction[],
  sink: ActionSink,
): void {
  const coordinates = layout.coordinates(rank);
  const posted: (number | null)[] = []; // planned send ordinal -> real one, null where nothing is sent
  let sends = 0;
  for (const action of planned) {
    if (action.kind === "run") {
      const variant = role.variants[role.variantOf[action.microbatch]!]!;
      if (action.segment === "F") sink.feed(variant.feeds, action.microbatch, action.slot);
      sink.run(action.segment === "F" ? variant.forward : variant.backward, action.slot, action.microbatch);
    } else if (action.kind === "transfer") {
      const items = action.items.flatMap((item) => {
        const view = role.variants[role.variantOf[item.microbatch]!]!.crossings.get(item.value);
        const empty = view === undefined || sizeOf(view.dims) === 0;
        if (item.direction === "send") posted.push(empty ? null : sends++);
        const peer = layout.rank({ ...coordinates, pp: item.peerStage });
        return empty ? [] : [{ direction: item.direction, peer, tag: item.value, view, slot: item.slot }];
      });
      if (items.length > 0) sink.actions.push({ kind: "transfer", items });
    } else {
      const send = posted[action.send];
      if (send !== null && send !== undefined) sink.actions.push({ kind: "wait", send });
    }
  }
}

/** Evaluates table entries for one device. */
export function deviceTable(layout: MeshLayout, rank: number): DeviceTable {
  return {
    words(entry, microbatch) {
      const place = layout.place(rank, microbatch);
      switch (entry.kind) {
        case "literal":
          return [entry.value];
        case "start":
          return [startOf(entry, layout, place)];
        case "counts":
          return counts(entry, layout, place);
      }
    },
    group: (entry) => layout.group(rank, entry.axes, entry.stages),
  };
}

/** Where this device's part begins, in the whole dim or in the part that the outer axes leave. */
function startOf(entry: TableEntry & { kind: "start" }, layout: MeshLayout, place: Place): number {
  const { start } = shardInterval(entry.size, entry.axes, layout.sizes, place);
  return entry.outer ? start - shardInterval(entry.size, entry.outer, layout.sizes, place).start : start;
}

/** Size of each rank's part of a dim, over the ranks along `axes`, in group order. */
function counts(entry: TableEntry & { kind: "counts" }, layout: MeshLayout, place: Place): number[] {
  const axis = entry.axes[0]!;
  const name = axisName(axis);
  return Array.from({ length: layout.size(name) }, (_, c) => {
    const at = { ...place, coordinates: { ...place.coordinates, [name]: c } };
    const { start, stop } = shardInterval(entry.size, [...entry.outer, axis], layout.sizes, at);
    return stop - start;
  });
}
