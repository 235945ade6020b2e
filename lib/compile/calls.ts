// The collectives a device calls in a run, in order, for the proof that all ranks' calls match.
import { ProgramError } from "../core/errors.ts";
import { sizeOf } from "../core/shape.ts";
import type { Attribute, TableEntry } from "../ir/lowering.ts";
import type { Action } from "../passes/device-action.ts";
import type { DeviceTable } from "../passes/encode.ts";
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

/** The bounds of an exchange whose counts are data: as table words, which differ from microbatch to microbatch. */
interface RowBounds {
  readonly back: boolean;
  readonly most: Exclude<TableEntry, GroupEntry>;
  /** For so many rows there is room. */
  readonly room: number;
}

function boundsOf({ kernel, attributes, outputs }: Instruction): RowBounds | null {
  if (kernel !== "expert_exchange") return null;
  const [, , back, most] = attributes;
  if (typeof most !== "object" || !("table" in most) || most.table.kind === "group") {
    throw new ProgramError("an exchange with experts does not say how many rows may come");
  }
  return { back: back === 1, most: most.table, room: outputs[0]!.dims[0]! };
}

/** A collective instruction of a role: its calls by group and bounds, which all of the group's devices share. */
interface RoleCall {
  readonly entry: GroupEntry;
  readonly call: Omit<CollectiveCall, "group">;
  readonly bounds: RowBounds | null;
  readonly made: Map<readonly number[], Map<string, CollectiveCall>>;
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
    const bySegment = new Map<string, CollectiveCall[]>();
    const calls = (segment: number, microbatch: number): CollectiveCall[] => {
      const own = this.#segments[segment]!;
      const key = own.some(({ bounds }) => bounds) ? `${segment} ${microbatch}` : `${segment}`;
      const known = bySegment.get(key);
      if (known) return known;
      const made = own.map((call) => {
        const words = call.bounds ? table.words(call.bounds.most, microbatch) : [];
        return callOf(call, ranksOf(call.entry), words);
      });
      bySegment.set(key, made);
      return made;
    };
    return actions.flatMap((a) => (a.kind === "run" ? calls(a.segment, a.microbatch) : []));
  }

  #shared(ranks: readonly number[]): readonly number[] {
    const key = ranks.join();
    const known = this.#groups.get(key) ?? ranks;
    this.#groups.set(key, known);
    return known;
  }
}

/** The call of a group, with these most rows that each rank may bring another. */
function callOf({ call, bounds, made }: RoleCall, group: readonly number[], most: readonly number[]): CollectiveCall {
  const key = most.join(" ");
  const known = made.get(group)?.get(key);
  if (known) return known;
  // On the way back as many rows come as were brought.
  const rows = bounds && { arriving: bounds.back ? 0 : most.reduce((a, b) => a + b, 0), room: bounds.room };
  const full = rows ? { ...call, group, kind: `${call.kind} at most ${key}`, rows } : { ...call, group };
  made.set(group, (made.get(group) ?? new Map()).set(key, full));
  return full;
}

function roleCall(i: Instruction, alike: (entry: GroupEntry) => GroupEntry): RoleCall | null {
  const entry = groupOf(i.attributes[0]);
  if (!entry) return null;
  const numbers = i.attributes.slice(1).filter((a) => typeof a === "number");
  const call = {
    kind: [i.kernel, ...numbers].join(" "),
    count: wholeCount(i),
    dtype: i.outputs[0]!.dtype,
    label: i.label,
  };
  return { entry: alike(entry), call, bounds: boundsOf(i), made: new Map() };
}
