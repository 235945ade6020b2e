// Encoding: writes a planned program as the words that native code decodes (docs/PROGRAM.md).
import { dtypeCode } from "../core/dtype.ts";
import { ProgramError } from "../core/errors.ts";
import type { Attribute, TableEntry, View } from "../ir/lowering.ts";
import { axisName } from "../ir/spec.ts";
import { opTableHash } from "../ops/hash.ts";
import { kernels } from "../ops/kernels.ts";
import type { Action, InSlots } from "./device-action.ts";
import type { Instruction, ProgramBuilder } from "./lower.ts";
import { type MemoryPlan, alignment, poolOf } from "./memory.ts";
import { type Pool, pools } from "./slots.ts";

/** What differs between the devices that run the same segments. */
export interface DeviceTable {
  /** Evaluates a table entry (other than a group's number) at a microbatch: its words. */
  words(entry: Exclude<TableEntry, { kind: "group" }>, microbatch: number): number[];
  /** Ranks of the group a "group" entry names. */
  group(entry: TableEntry & { kind: "group" }): readonly number[];
}

const magic = 0x4d575052;
const codes = new Map(kernels.map((k, i) => [k.name as string, { code: i + 1, signature: k }]));

/** The part of an encoding that all devices with the same segments share. Words are those of whole sections. */
export interface EncodedSegments {
  readonly plan: MemoryPlan;
  readonly buffers: Int32Array;
  readonly floats: Int32Array;
  readonly labels: Int32Array;
  readonly segments: Int32Array;
  readonly entries: readonly TableEntry[];
  readonly groups: readonly (TableEntry & { kind: "group" })[];
  /** The section of views. Actions of devices may add some. */
  views(): Int32Array;
  viewIndex(view: View): number;
}

class Interner<T> {
  readonly list: T[] = [];
  readonly #index = new Map<string, number>();
  add(key: string, value: T): number {
    const known = this.#index.get(key);
    if (known !== undefined) return known;
    this.list.push(value);
    this.#index.set(key, this.list.length - 1);
    return this.list.length - 1;
  }
}

/** Encodes the segments of a planned program. `boundBytes` are the smallest sizes of the bound buffers. */
export function encodeSegments(
  program: ProgramBuilder,
  plan: MemoryPlan,
  boundBytes: readonly number[],
): EncodedSegments {
  const views = new Interner<number[]>();
  const floats = new Interner<number>();
  const labels = new Interner<string>();
  const entries = new Interner<TableEntry>();
  const groups = new Interner<TableEntry & { kind: "group" }>();
  const offsets: number[] = [];
  let tableWords = 0;
  const viewIndex = (view: View): number => {
    const words = [
      dtypeCode(view.dtype),
      view.dims.length,
      ...wide(view.offset),
      ...view.dims.flatMap(wide),
      ...view.strides.flatMap(wide),
    ];
    return views.add(words.join(), words);
  };
  const tableIndex = (entry: TableEntry): number => {
    const before = entries.list.length;
    const index = entries.add(JSON.stringify(entry), entry);
    if (index === before) {
      if (entry.kind === "group") groups.add(JSON.stringify(entry), entry);
      offsets.push(tableWords);
      tableWords += wordsOf(entry, program.sizes);
    }
    return offsets[index]!;
  };
  const attribute = (a: Attribute): number =>
    typeof a === "number"
      ? a
      : "float" in a
        ? floats.add(String(Object.is(a.float, -0) ? "-0" : a.float), a.float)
        : tableIndex(a.table);
  const operand = (view: View): number[] => {
    const { region, offset } = plan.locations[view.buffer]!;
    return [region, offset / alignment, viewIndex(view)];
  };
  const instruction = (i: Instruction, relative: boolean): number[] => {
    const operands = [...i.inputs, ...i.outputs];
    const known = codes.get(i.kernel);
    if (!known) throw new ProgramError(`no kernel is named ${i.kernel} (lowering of ${i.label})`);
    return [
      known.code,
      i.inputs.length,
      i.outputs.length,
      i.attributes.length,
      i.label === "" ? -1 : labels.add(i.label, i.label),
      ...operands.flatMap((view, k) => (relative ? [1 + k, 0, viewIndex(view)] : operand(view))),
      ...i.attributes.map(attribute),
    ];
  };
  const segments = program.segments.map((s) => {
    const words = s.instructions.flatMap((i) => instruction(i, s.relative));
    return [words.length, ...words];
  });
  let viewWords = new Int32Array(0);
  return {
    plan,
    buffers: section(boundBytes.length, boundBytes.map(wide)),
    floats: section(floats.list.length, [new Int32Array(Float64Array.from(floats.list).buffer)]),
    labels: section(labels.list.length, labels.list.map(labelWords)),
    segments: section(segments.length, segments),
    entries: entries.list,
    groups: groups.list,
    views() {
      if (viewWords[0] !== views.list.length) viewWords = section(views.list.length, views.list);
      return viewWords;
    },
    viewIndex,
  };
}

/** A count, and the words of so many parts. */
function section(count: number, parts: readonly ArrayLike<number>[]): Int32Array<ArrayBuffer> {
  return joined([[count], ...parts]);
}

/** All words one after the other. */
function joined(parts: readonly ArrayLike<number>[]): Int32Array<ArrayBuffer> {
  const out = new Int32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

/** Words of a table entry: one, or one for each rank of its axes. */
function wordsOf(entry: TableEntry, sizes: Readonly<Record<string, number>>): number {
  const axes = entry.kind === "counts" ? entry.axes : entry.kind === "ring" ? [entry.axis] : [];
  return axes.reduce((n, a) => n * (sizes[axisName(a)] ?? 1), 1);
}

function wide(n: number): [number, number] {
  return [n | 0, Math.floor(n / 2 ** 32)];
}

/** Encodes the program of one device. */
export function encodeProgram(
  code: EncodedSegments,
  actions: readonly Action[],
  device: DeviceTable,
  microbatches: number,
): Int32Array {
  const { plan } = code;
  const words = (e: TableEntry, m: number): number[] =>
    e.kind === "group" ? [code.groups.indexOf(e)] : device.words(e, m);
  const tables = Array.from({ length: microbatches }, (_, m) => code.entries.flatMap((e) => words(e, m)));
  const tableWords = tables[0]?.length ?? 0;
  const base = ({ stage, slots }: InSlots, pool: Pool): number => plan.slotOffset(stage, pool, slots[pool] ?? 0);
  const at = (view: View, where: InSlots): number => {
    const { region, offset } = plan.locations[view.buffer]!;
    const pool = poolOf(region);
    if (region !== 0 && !pool) throw new ProgramError("a transfer or feed must lie in the arena");
    return (pool ? base(where, pool) : 0) + offset;
  };
  const encodeAction = (a: Action): number[] => {
    switch (a.kind) {
      case "run":
        return [1, a.segment, ...pools.map((pool) => base(a, pool) / alignment), a.microbatch * tableWords];
      case "handover": {
        // The segment copies from the start of its first slot to that of its second: see ProgramBuilder.handover.
        const [from, to] = [a.from, a.to].map((side) => at(side.view, side) / alignment);
        return [1, a.segment, from!, to!, 0, a.microbatch * tableWords];
      }
      case "transfer":
        return [
          2,
          a.items.length,
          ...a.items.flatMap((t) => [
            t.direction === "send" ? 0 : 1,
            t.peer,
            t.tag,
            at(t.view, t) / alignment,
            code.viewIndex(t.view),
          ]),
        ];
      case "wait":
        return [3, a.send];
      case "feed":
        return [4, ...wide(a.stagingOffset), at(a.view, a) / alignment, ...wide(a.bytes)];
      case "fetch": {
        const { region, offset } = plan.locations[a.view.buffer]!;
        return [5, region, offset / alignment, ...wide(a.stagingOffset), ...wide(a.bytes)];
      }
    }
  };
  const actionWords = actions.flatMap(encodeAction);
  const groups = code.groups.map((g) => {
    const ranks = device.group(g);
    return [ranks.length, ...ranks];
  });
  return joined([
    [magic, 1, opTableHash | 0, ...wide(plan.arenaBytes)],
    code.buffers,
    code.views(),
    code.floats,
    [tableWords * microbatches],
    ...tables,
    section(groups.length, groups),
    code.labels,
    code.segments,
    [actionWords.length],
    actionWords,
  ]);
}

function labelWords(label: string): number[] {
  const bytes = new TextEncoder().encode(label);
  const padded = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
  padded.set(bytes);
  return [bytes.length, ...new Int32Array(padded.buffer)];
}
