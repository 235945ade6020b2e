// The collectives a device calls in a run, in order, for the proof that all ranks' calls match.
import { sizeOf } from "../core/shape.ts";
import type { Attribute, TableEntry } from "../ir/lowering.ts";
import type { Action, DeviceTable } from "../passes/encode.ts";
import type { Instruction, ProgramBuilder } from "../passes/lower.ts";
import type { CollectiveCall } from "../passes/prove-collectives.ts";

type GroupEntry = TableEntry & { readonly kind: "group" };

function groupOf(attribute: Attribute | undefined): GroupEntry | null {
  if (typeof attribute !== "object" || !("table" in attribute)) return null;
  return attribute.table.kind === "group" ? attribute.table : null;
}

/** Elements of the whole tensor, where all ranks agree on it; an exchange's differ from rank to rank. */
function wholeCount({ kernel, inputs, outputs }: Instruction): number {
  if (kernel === "all_to_all" || kernel === "expert_exchange") return 0;
  return inputs.reduce((sum, x, i) => sum + Math.max(sizeOf(x.dims), sizeOf(outputs[i]!.dims)), 0);
}

/** Bounds of an exchange whose counts are data: on the way back they are those of the way there. */
function rowBounds({ outputs }: Instruction, [back, most]: readonly number[]): CollectiveCall["rows"] {
  return { most: back ? 0 : most!, room: outputs[0]!.dims[0]! };
}

/** A collective instruction of a role: its calls by group, which all of the group's devices share. */
interface RoleCall {
  readonly entry: GroupEntry;
  readonly call: Omit<CollectiveCall, "group">;
  readonly byGroup: Map<readonly number[], CollectiveCall>;
}

/** The calls of the devices that run one role's segments. `groups` are all groups so far, by their ranks. */
export class RoleCalls {
  readonly #segments: readonly (readonly RoleCall[])[];
  readonly #groups: Map<string, readonly number[]>;

  constructor({ segments }: ProgramBuilder, groups: Map<string, readonly number[]>) {
    this.#groups = groups;
    const entries = new Map<string, GroupEntry>();
    const alike = (entry: GroupEntry): GroupEntry => {
      const key = JSON.stringify(entry);
      const known = entries.get(key) ?? entry;
      entries.set(key, known);
      return known;
    };
    this.#segments = segments.map(({ instructions }) => instructions.flatMap((i) => roleCall(i, alike) ?? []));
  }

  /** The calls of one device: its collective instructions, in the order in which its actions run them. */
  of(actions: readonly Action[], table: DeviceTable): CollectiveCall[] {
    const groups = new Map<GroupEntry, readonly number[]>();
    const ranksOf = (entry: GroupEntry): readonly number[] => {
      const known = groups.get(entry) ?? this.#shared(table.group(entry));
      groups.set(entry, known);
      return known;
    };
    const bySegment = new Map<number, CollectiveCall[]>();
    const calls = (segment: number): CollectiveCall[] => {
      const known = bySegment.get(segment);
      if (known) return known;
      const made = this.#segments[segment]!.map(({ entry, call, byGroup }) => {
        const group = ranksOf(entry);
        const same = byGroup.get(group) ?? { ...call, group };
        byGroup.set(group, same);
        return same;
      });
      bySegment.set(segment, made);
      return made;
    };
    return actions.flatMap((a) => (a.kind === "run" ? calls(a.segment) : []));
  }

  #shared(ranks: readonly number[]): readonly number[] {
    const key = ranks.join();
    const known = this.#groups.get(key) ?? ranks;
    this.#groups.set(key, known);
    return known;
  }
}

function roleCall(i: Instruction, alike: (entry: GroupEntry) => GroupEntry): RoleCall | null {
  const entry = groupOf(i.attributes[0]);
  if (!entry) return null;
  const numbers = i.attributes.slice(1).filter((a) => typeof a === "number");
  const bounded = i.kernel === "expert_exchange";
  const call = {
    kind: [i.kernel, ...(bounded ? numbers.slice(0, 1) : numbers)].join(" "),
    count: wholeCount(i),
    rows: bounded ? rowBounds(i, numbers) : undefined,
    dtype: i.outputs[0]!.dtype,
    label: i.label,
  };
  return { entry: alike(entry), call, byGroup: new Map() };
}
