// Lowering: turns graphs with specs into instructions on virtual buffers, with the local shapes of one place of the
// mesh. Several graphs (forward and backward, update) are lowered into one program, as segments that share buffers.
import { type DType, dtypeSize } from "../core/dtype.ts";
import { ProgramError } from "../core/errors.ts";
import { type Shape, rowMajorStrides, sameShape, shapeText, sizeOf } from "../core/shape.ts";
import type { Graph, Node, Segment as StageSegment, TensorType } from "../ir/graph.ts";
import type { Attribute, LowerContext, View } from "../ir/lowering.ts";
import { type Place, type ValueSpec, localShape, specText } from "../ir/spec.ts";
import { getOp } from "../ops/index.ts";

/**
 * Where a virtual buffer lives: "auto" is scratch when one segment uses it and a slot when several do; "slot" holds a
 * microbatch's values from segment to segment; "step" lasts for the whole run; "bound" is one of the program's bound
 * buffers.
 */
export type Home = "auto" | "slot" | "step" | { readonly bound: number };

/** A virtual buffer and who uses it. */
export interface VirtualBuffer {
  readonly bytes: number;
  readonly home: Home;
  /** The stage and the variant of the microbatch segments that it belongs to (slots of variants overlap). */
  readonly stage: number;
  readonly variant: number;
  /** What touches it beside instructions: feeds, before the segment they are for. */
  readonly fedFor: Set<StageSegment>;
  /** First and last instruction of each segment that touches it. */
  readonly uses: Map<number, { first: number; last: number }>;
}

/** One instruction on views of virtual buffers. */
export interface Instruction {
  readonly kernel: string;
  readonly inputs: readonly View[];
  readonly outputs: readonly View[];
  readonly attributes: readonly Attribute[];
  readonly label: string;
}

/** A straight run of instructions that a schedule starts as one. */
export interface Segment {
  readonly name: string;
  /** Which part of a stage's work on a microbatch it is, if any. */
  readonly part: StageSegment | null;
  /** True when its instructions' k-th operand is at the start of the running action's k-th slot. */
  readonly relative: boolean;
  readonly instructions: Instruction[];
}

/** How a graph is lowered. */
export interface LowerOptions {
  readonly graph: Graph;
  readonly place: Place;
  /** Segment of a node. */
  segmentOf(node: Node): number;
  /** Memory of an `input` or `parameter` node. */
  source(node: Node, local: TensorType, spec: ValueSpec): View;
  /** Whether this device runs a node (its stage does); all nodes when absent. */
  mine?(node: number): boolean;
  /** Memory of a value that another stage sends. */
  received?(value: number, local: TensorType): View;
  /** Values that leave this device: their views become contiguous slot buffers. */
  readonly sent?: ReadonlySet<number>;
  /** Where gathers go that are made once a step, and those that are made already, for other microbatches or reads. */
  readonly once?: { readonly segment: number; readonly made: Map<string, readonly View[]> };
}

/** Ops that are made anew in each segment that reads them rather than kept: leaves, and views of leaves. */
const leaves = new Set(["constant", "iota", "input", "parameter", "random"]);

/** Ops whose results are mostly views of their operands' memory. */
export const viewOps: ReadonlySet<string> = new Set([
  "reshape",
  "transpose",
  "broadcast",
  "slice",
  "shard_slice",
  "stop_gradient",
]);
const cheap = new Set([...viewOps, "cast"]);

/** For each node, whether each segment that reads it makes it anew. */
export function duplicable(graph: Graph): boolean[] {
  const out: boolean[] = [];
  for (const node of graph.nodes) {
    const fromLeaves = node.inputs.every((v) => out[graph.values[v]!.node]);
    out.push(leaves.has(node.op) ? fromLeaves : cheap.has(node.op) && fromLeaves);
  }
  return out;
}

/** Collects the buffers and segments of one device's program. */
export class ProgramBuilder {
  readonly buffers: VirtualBuffer[] = [];
  readonly segments: Segment[] = [];
  readonly sizes: Readonly<Record<string, number>>;
  /**
   * Stage and variant of the buffers made from now on: microbatches of other local shapes have segments of their own.
   */
  stage = 0;
  variant = 0;

  constructor(sizes: Readonly<Record<string, number>>) {
    this.sizes = sizes;
  }

  /** Adds a segment and returns its number. */
  segment(name: string, part: StageSegment | null = null): number {
    this.segments.push({ name, part, relative: false, instructions: [] });
    return this.segments.length - 1;
  }

  /** A contiguous view of a new buffer. */
  allocate(dtype: DType, dims: Shape, home: Home): View {
    const { stage, variant } = this;
    const bytes = sizeOf(dims) * dtypeSize(dtype);
    this.buffers.push({ bytes, home, stage, variant, fedFor: new Set(), uses: new Map() });
    return { buffer: this.buffers.length - 1, dtype, offset: 0, dims: [...dims], strides: rowMajorStrides(dims) };
  }

  /** Adds an instruction; those that would write no element are left out unless every rank must take part. */
  emit(segment: number, instruction: Instruction): void {
    const { instructions } = this.segments[segment]!;
    const collective = instruction.attributes.some(
      (a) => typeof a === "object" && "table" in a && a.table.kind === "group",
    );
    if (!collective && instruction.outputs.every((v) => sizeOf(v.dims) === 0)) return;
    for (const view of [...instruction.inputs, ...instruction.outputs]) this.touch(view, segment, instructions.length);
    instructions.push(instruction);
  }

  /** Notes that a segment uses a view's memory at an instruction. */
  touch(view: View, segment: number, instruction: number): void {
    const { uses } = this.buffers[view.buffer]!;
    const use = uses.get(segment);
    if (use) {
      use.first = Math.min(use.first, instruction);
      use.last = Math.max(use.last, instruction);
    } else uses.set(segment, { first: instruction, last: instruction });
  }

  /** Puts other instructions in place of one. */
  replace(segment: number, at: number, instructions: readonly Instruction[]): void {
    const more = instructions.length - 1;
    for (const { uses } of this.buffers) {
      const use = uses.get(segment);
      if (use && use.first > at) use.first += more;
      if (use && use.last > at) use.last += more;
    }
    this.segments[segment]!.instructions.splice(at, 1, ...instructions);
    instructions.forEach(({ inputs, outputs }, i) => {
      for (const view of [...inputs, ...outputs]) this.touch(view, segment, at + i);
    });
  }

  copy(segment: number, from: View, to: View, label: string): void {
    this.emit(segment, { kernel: "copy", inputs: [from], outputs: [to], attributes: [], label });
  }

  /**
   * A segment that copies a value from where one stage has it to where another wants it; the action says where that is.
   */
  handover(from: View, to: View, label: string): number {
    const copy = { kernel: "copy", inputs: [from], outputs: [to], attributes: [], label };
    this.segments.push({ name: "handover", part: null, relative: true, instructions: [copy] });
    return this.segments.length - 1;
  }

  /** Lowers a graph; returns a function that gives a value's view as a segment sees it. */
  lower(options: LowerOptions): (value: number, segment: number) => View {
    return new GraphLowering(this, options).run();
  }
}

/** True when a view's elements lie row-major without gaps. */
export function isContiguous(view: View): boolean {
  let expected = 1;
  for (let d = view.dims.length - 1; d >= 0; d--) {
    if (view.dims[d] === 0) return true;
    if (view.dims[d] !== 1 && view.strides[d] !== expected) return false;
    expected *= view.dims[d]!;
  }
  return true;
}

class GraphLowering {
  readonly #program: ProgramBuilder;
  readonly #options: LowerOptions;
  readonly #duplicable: boolean[];
  /** Views by value; for values made anew per segment, by segment and value. */
  readonly #views = new Map<number, View>();
  readonly #copies = new Map<string, View>();

  constructor(program: ProgramBuilder, options: LowerOptions) {
    this.#program = program;
    this.#options = options;
    this.#duplicable = duplicable(options.graph);
  }

  run(): (value: number, segment: number) => View {
    const { graph } = this.#options;
    graph.nodes.forEach((node, n) => {
      if (this.#duplicable[n] || !this.#mine(n)) return;
      const { once, segmentOf } = this.#options;
      if (once && node.params.once === true) this.#lowerOnce(node, once);
      else this.#lowerNode(node, segmentOf(node));
    });
    return (value, segment) => this.#view(value, segment);
  }

  #mine(node: number): boolean {
    return this.#options.mine?.(node) ?? true;
  }

  #known(value: number, segment: number): View | undefined {
    const node = this.#options.graph.values[value]!.node;
    if (this.#duplicable[node]) return this.#copies.get(`${segment} ${value}`);
    if (!this.#views.has(value) && !this.#mine(node)) {
      this.#views.set(value, this.#options.received!(value, this.#localType(value)));
    }
    return this.#views.get(value);
  }

  #view(value: number, segment: number): View {
    const known = this.#known(value, segment);
    if (known) return known;
    const { graph } = this.#options;
    const pending = [graph.values[value]!.node];
    while (pending.length > 0) {
      const node = graph.nodes[pending.at(-1)!]!;
      const missing = node.inputs.filter((v) => !this.#known(v, segment));
      if (missing.length > 0) pending.push(...missing.map((v) => graph.values[v]!.node));
      else {
        pending.pop();
        if (node.outputs.some((v) => !this.#known(v, segment))) this.#lowerNode(node, segment);
      }
    }
    return this.#known(value, segment)!;
  }

  #localType(value: number): TensorType {
    const { type, spec } = this.#options.graph.values[value]!;
    return { dtype: type.dtype, shape: localShape(type.shape, spec!, this.#program.sizes, this.#options.place) };
  }

  /** Lowers a gather that is the same in every microbatch, or takes the results of the one before. */
  #lowerOnce(node: Node, { segment, made }: NonNullable<LowerOptions["once"]>): void {
    const key = node.outputs.map((v, i) => this.#gatheredText(node.inputs[i]!, v)).join("; ");
    const known = made.get(key);
    if (known) for (const [i, v] of node.outputs.entries()) this.#views.set(v, known[i]!);
    else {
      this.#lowerNode(node, segment, "step");
      made.set(
        key,
        node.outputs.map((v) => this.#views.get(v)!),
      );
    }
  }

  /** Names a gathered parameter: its id, dtype and what still splits it. */
  #gatheredText(input: number, output: number): string {
    const { nodes, values } = this.#options.graph;
    let maker = nodes[values[input]!.node]!;
    while (maker.op !== "parameter") maker = nodes[values[maker.inputs[0]!]!.node]!;
    const { type, spec } = values[output]!;
    return `${maker.params.id} ${type.dtype} ${specText(spec!)}`;
  }

  #lowerNode(node: Node, segment: number, home: Home = "auto"): void {
    const { graph, sent } = this.#options;
    const views: (View | undefined)[] = node.outputs.map(() => undefined);
    if (node.op === "input" || node.op === "parameter") {
      const v = node.outputs[0]!;
      views[0] = this.#options.source(node, this.#localType(v), graph.values[v]!.spec!);
    } else {
      const inputs = node.inputs.map((v) => this.#view(v, segment));
      getOp(node.op).lower(this.#context(node, segment, inputs, views, home));
    }
    node.outputs.forEach((v, i) => {
      const local = this.#localType(v);
      let view = views[i];
      if (!view) throw new ProgramError(`${node.op} in ${node.path || "the graph"} was lowered without result ${i}`);
      if (!sameShape(view.dims, local.shape)) {
        throw new ProgramError(
          `${node.op} in ${node.path || "the graph"}: result ${i} is ${shapeText(view.dims)}, not ${shapeText(local.shape)}`,
        );
      }
      if (sent?.has(v)) view = this.#own(view, segment, node);
      if (this.#duplicable[graph.values[v]!.node]) this.#copies.set(`${segment} ${v}`, view);
      else this.#views.set(v, view);
    });
  }

  /** The value in a contiguous slot buffer of its own, as a transfer needs it. */
  #own(view: View, segment: number, node: Node): View {
    const slot = this.#program.allocate(view.dtype, view.dims, "slot");
    this.#program.copy(segment, view, slot, node.path);
    return slot;
  }

  #context(
    node: Node,
    segment: number,
    inputs: View[],
    views: (View | undefined)[],
    home: Home,
  ): LowerContext<Node["params"]> {
    const { graph } = this.#options;
    const program = this.#program;
    const outputTypes = node.outputs.map((v) => this.#localType(v));
    const temporary = (dtype: DType, dims: Shape): View => program.allocate(dtype, dims, "auto");
    return {
      params: node.params,
      inputs,
      outputTypes,
      globalInputs: node.inputs.map((v) => graph.values[v]!.type),
      globalOutputs: node.outputs.map((v) => graph.values[v]!.type),
      inputSpecs: node.inputs.map((v) => graph.values[v]!.spec!),
      outputSpecs: node.outputs.map((v) => graph.values[v]!.spec!),
      output: (i) => {
        views[i] ??= program.allocate(outputTypes[i]!.dtype, outputTypes[i]!.shape, home);
        return views[i];
      },
      alias: (i, view) => {
        views[i] = view;
      },
      temporary,
      inPlace: (i, j) => {
        views[i] = inputs[j]!;
        return inputs[j]!;
      },
      contiguous: (view) => {
        if (isContiguous(view)) return view;
        const whole = temporary(view.dtype, view.dims);
        program.copy(segment, view, whole, node.path);
        return whole;
      },
      emit: (kernel, ins, outs, attributes = []) => {
        program.emit(segment, { kernel, inputs: ins, outputs: outs, attributes, label: node.path });
      },
    };
  }
}
