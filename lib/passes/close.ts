// Cutting a step's closing graph, written as if for one device, into pipeline stages: each runs what reads its own
// results of the microbatches; what several stages hold parts of (sums of gradients, lists of norms) is summed over
// those stages.
import { type Graph, type Node, newGraph } from "../ir/graph.ts";
import { GraphBuilder, type GraphValue, GraphValueBuilder } from "./graph-builder.ts";

/** Ops that stages do on their parts of a value: the sum of what they give is what the op gives. */
const additive = new Set(["add", "concat", "reshard"]);

/** Stages, ascending; null: all, since the value is made from parameters, constants and fed inputs alone. */
type Stages = readonly number[] | null;

/** Where a value is. `parts`: each of `on` has a part, and their sum is the value; else each has all of it. */
interface Where {
  readonly on: Stages;
  readonly parts: boolean;
}

/** A value brought to stages that lack it, or have a part of it only. */
interface Meeting {
  readonly value: number;
  readonly stages: readonly number[];
}

interface Cut {
  readonly where: readonly Where[];
  /** Meetings to hold before a node, in one order on all stages. */
  readonly before: readonly (readonly Meeting[])[];
  readonly last: readonly Meeting[];
  /** The meeting that each input of each node reads, if any; by node, then input. */
  readonly reads: readonly (readonly (Meeting | undefined)[])[];
  readonly outputs: readonly (Meeting | undefined)[];
}

/**
 * Each stage's part of a closing graph; null for a stage that has nothing to do. `stageOf` gives the stage of a result
 * of the microbatches, by the name of the `input` node that reads it; undefined for what every stage has. Outputs are
 * on every stage that has what they are made from.
 */
export function cutByStage(
  graph: Graph,
  stages: number,
  stageOf: (name: string) => number | undefined,
): (Graph | null)[] {
  if (stages === 1) return [graph.outputs.length > 0 ? graph : null];
  const cut = placeValues(graph, stages, stageOf);
  return upTo(stages).map((stage) => new StagePart(graph, cut, stages, stage).build());
}

function placeValues(graph: Graph, stages: number, stageOf: (name: string) => number | undefined): Cut {
  const where: Where[] = [];
  const meetings = new Map<string, Meeting>();
  const before: Meeting[][] = [];
  let pending: Meeting[] = [];
  /** The value whole on all the given stages. */
  const bring = (value: number, to: readonly number[]): Meeting | undefined => {
    const { on, parts } = where[value]!;
    if (!parts && (on === null || to.every((s) => on.includes(s)))) return undefined;
    const key = `${value} ${to.join()}`;
    const known = meetings.get(key);
    if (known) return known;
    const made = { value, stages: to };
    meetings.set(key, made);
    pending.push(made);
    return made;
  };
  const whole = (value: number): Meeting | undefined =>
    where[value]!.parts ? bring(value, where[value]!.on ?? upTo(stages)) : undefined;
  const reads = graph.nodes.map((node, n) => {
    pending = [];
    const inputs = node.inputs.map((v) => where[v]!);
    const union = inputs.reduce<Stages>((a, { on }) => unite(a, on), null);
    const common = inputs.reduce<Stages>((a, { on }) => meet(a, on), null);
    let own: Where = { on: sourceStages(node, stageOf) ?? common, parts: false };
    let read: (Meeting | undefined)[] = [];
    if (node.params.everywhere === true) {
      own = { on: upTo(stages), parts: false };
      read = node.inputs.map((v) => bring(v, upTo(stages)));
    } else if (common?.length === 0 || inputs.some((w) => w.parts)) {
      if (additive.has(node.op)) own = { on: union, parts: true };
      else if (common?.length === 0) {
        own = { on: union, parts: false };
        read = node.inputs.map((v) => bring(v, union!));
      } else read = node.inputs.map(whole);
    }
    for (const v of node.outputs) where[v] = own;
    before[n] = pending;
    return read;
  });
  pending = [];
  const outputs = graph.outputs.map(({ value }) => whole(value));
  return { where, before, last: pending, reads, outputs };
}

function sourceStages(node: Node, stageOf: (name: string) => number | undefined): Stages | undefined {
  const stage = node.op === "input" ? stageOf(node.params.name as string) : undefined;
  return stage === undefined ? undefined : [stage];
}

/** Builds the part of one stage. */
class StagePart {
  readonly #graph: Graph;
  readonly #cut: Cut;
  readonly #stages: number;
  readonly #stage: number;
  readonly #target = new GraphBuilder(newGraph());
  readonly #b = new GraphValueBuilder(this.#target);
  /** What this stage has of each value. */
  readonly #made: (GraphValue | undefined)[] = [];
  readonly #met = new Map<Meeting, GraphValue>();

  constructor(graph: Graph, cut: Cut, stages: number, stage: number) {
    this.#graph = graph;
    this.#cut = cut;
    this.#stages = stages;
    this.#stage = stage;
  }

  build(): Graph | null {
    const needed = this.#needed();
    this.#graph.nodes.forEach((node, n) => {
      for (const meeting of this.#cut.before[n]!) this.#meet(meeting);
      if (needed[n]) this.#node(node, n);
    });
    for (const meeting of this.#cut.last) this.#meet(meeting);
    this.#graph.outputs.forEach(({ name, value }, i) => {
      const meeting = this.#cut.outputs[i];
      const result = meeting ? this.#met.get(meeting) : this.#made[value];
      if (result) this.#target.graph.outputs.push({ name, value: result.id });
    });
    return this.#target.graph.outputs.length > 0 ? this.#target.graph : null;
  }

  /** Nodes whose values this stage's results, or its parts in meetings, are made from. */
  #needed(): boolean[] {
    const { nodes, values, outputs } = this.#graph;
    const { where, reads, before, last } = this.#cut;
    const needed = nodes.map(() => false);
    const need = (value: number): void => {
      needed[values[value]!.node] = true;
    };
    outputs.forEach(({ value }, i) => {
      if (!this.#cut.outputs[i] && this.#has(where[value]!)) need(value);
    });
    for (const { value, stages } of [...before.flat(), ...last]) {
      if (stages.includes(this.#stage) && this.#adds(value, stages)) need(value);
    }
    for (let n = nodes.length - 1; n >= 0; n--) {
      if (!needed[n]) continue;
      const own = where[nodes[n]!.outputs[0]!]!;
      nodes[n]!.inputs.forEach((v, i) => {
        if (own.parts ? this.#adds(v, own.on) : !reads[n]![i]) need(v);
      });
    }
    return needed;
  }

  #has({ on }: Where): boolean {
    return on === null || on.includes(this.#stage);
  }

  #node(node: Node, n: number): void {
    this.#at(node);
    const own = this.#cut.where[node.outputs[0]!]!;
    if (own.parts) {
      const parts = node.inputs.map((v) => this.#part(v, own.on));
      this.#made[node.outputs[0]!] = this.#ofParts(node, parts);
      return;
    }
    const inputs = node.inputs.map((v, i) => {
      const meeting = this.#cut.reads[n]![i];
      return (meeting ? this.#met.get(meeting) : this.#made[v])!;
    });
    this.#b.emit(node.op, inputs, node.params).forEach((v, i) => {
      this.#made[node.outputs[i]!] = v;
    });
  }

  /**
   * Whether this stage adds something to a sum over stages: its part, or all of a value if it is the first that has it.
   */
  #adds(value: number, among: Stages): boolean {
    const { on, parts } = this.#cut.where[value]!;
    return parts ? on!.includes(this.#stage) : (on ?? among)?.[0] === this.#stage;
  }

  #part(value: number, among: Stages): GraphValue | undefined {
    return this.#adds(value, among) ? this.#made[value] : undefined;
  }

  #ofParts(node: Node, parts: readonly (GraphValue | undefined)[]): GraphValue | undefined {
    if (node.op === "add") return this.#sum(parts);
    if (node.op === "concat") return this.#concat(node, parts);
    return parts[0] && this.#b.one(node.op, [parts[0]], node.params);
  }

  #sum(parts: readonly (GraphValue | undefined)[]): GraphValue | undefined {
    return parts.reduce((x, y) => (x && y ? this.#b.add(x, y) : (x ?? y)));
  }

  /** The stage's parts in their places, zeros elsewhere. */
  #concat(node: Node, parts: readonly (GraphValue | undefined)[]): GraphValue | undefined {
    const dim = node.params.dim as number;
    const lengths = node.inputs.map((v) => this.#graph.values[v]!.type.shape[dim]!);
    const total = lengths.reduce((a, b) => a + b, 0);
    let runs: { from: number; length: number; parts: GraphValue[] }[] = [];
    let offset = 0;
    parts.forEach((part, i) => {
      const last = runs.at(-1);
      if (part && last && last.from + last.length === offset) {
        last.parts.push(part);
        last.length += lengths[i]!;
      } else if (part) runs = [...runs, { from: offset, length: lengths[i]!, parts: [part] }];
      offset += lengths[i]!;
    });
    const placed = runs.map((r) => this.#b.pad(this.#b.concat(r.parts, dim), dim, r.from, total - r.from - r.length));
    return placed.length === 0 ? undefined : this.#sum(placed);
  }

  #meet(meeting: Meeting): void {
    const { value, stages } = meeting;
    if (!stages.includes(this.#stage)) return;
    const { type, node } = this.#graph.values[value]!;
    this.#at(this.#graph.nodes[node]!);
    const own = this.#part(value, stages) ?? this.#b.constant(0, type.dtype, type.shape);
    const some = stages.length < this.#stages ? { stages: [...stages] } : {};
    const met = this.#b.one("all_reduce", [own], { axes: ["pp"], ...some, kind: "sum" });
    this.#met.set(meeting, met);
  }

  #at({ path, phase }: Node): void {
    this.#target.path = path;
    this.#target.phase = phase;
  }
}

/** Stages of either; those of one alone where the other is on all. */
function unite(a: Stages, b: Stages): Stages {
  if (a === null || b === null) return a ?? b;
  return [...new Set([...a, ...b])].sort((x, y) => x - y);
}

/** Stages of both. */
function meet(a: Stages, b: Stages): Stages {
  if (a === null || b === null) return a ?? b;
  return a.filter((s) => b.includes(s));
}

function upTo(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}
