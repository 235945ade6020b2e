// Proves that all ranks call the same collectives in an order in which none waits for ever.
import { PlanError } from "../core/errors.ts";

/** A collective as one rank calls it. */
export interface CollectiveCall {
  /** Ranks that take part, this one among them; the same order on all of them. */
  readonly group: readonly number[];
  /** all_reduce, all_gather, ... with what else must be alike, such as the reduction. */
  readonly kind: string;
  /** Elements of the whole collective, alike on all ranks. */
  readonly count: number;
  readonly dtype: string;
  /** Where counts are data: the most rows that may come, and for how many this rank has room. */
  readonly rows?: { readonly arriving: number; readonly room: number };
  /** Names it in errors: a module path. */
  readonly label: string;
}

type Calls = readonly (readonly CollectiveCall[])[];

/**
 * Throws PlanError unless the calls (one list per rank) match: the ranks of a group call the same kinds with the same
 * counts and dtypes in the same order, and the orders of different groups fit each other when every call blocks. The
 * error names the rank, the label and what differs.
 */
export function proveCollectives(perRank: Calls): void {
  const names = new GroupNames();
  const byGroup = new Map<
    string,
    { readonly group: readonly number[]; readonly lists: Map<number, CollectiveCall[]> }
  >();
  perRank.forEach((calls, rank) => {
    const checked = new Set<readonly number[]>();
    for (const call of calls) {
      if (!checked.has(call.group)) checkGroup(call, rank, perRank.length);
      checked.add(call.group);
      const name = names.of(call);
      const known = byGroup.get(name) ?? { group: call.group, lists: new Map() };
      byGroup.set(name, known);
      const list = known.lists.get(rank);
      if (list) list.push(call);
      else known.lists.set(rank, [call]);
    }
  });
  for (const { group, lists } of byGroup.values()) {
    const own = group.map((rank) => lists.get(rank) ?? []);
    own.slice(1).forEach((list, i) => {
      compareLists(own[0]!, list, group[0]!, group[i + 1]!);
    });
    own[0]!.forEach((call, i) => {
      if (call.rows === undefined) return;
      proveRoom(
        own.map((list) => list[i]!),
        group,
      );
    });
  }
  proveOrder(perRank, names);
}

/** Texts that tell groups apart; each list of ranks is read once. */
class GroupNames {
  readonly #known = new Map<readonly number[], string>();

  of({ group }: CollectiveCall): string {
    const name = this.#known.get(group) ?? group.join();
    this.#known.set(group, name);
    return name;
  }
}

function checkGroup(call: CollectiveCall, rank: number, ranks: number): void {
  const { group } = call;
  const fail = (what: string): never => refuse(`rank ${rank} calls ${textOf(call)}, ${what}`, { rank, ...call });
  if (!group.includes(rank)) fail("of which it is not a member");
  if (new Set(group).size !== group.length) fail("which names a rank twice");
  const stranger = group.find((r) => !Number.isInteger(r) || r < 0 || r >= ranks);
  if (stranger !== undefined) fail(`but there is no rank ${stranger}`);
}

function compareLists(first: readonly CollectiveCall[], other: readonly CollectiveCall[], a: number, b: number): void {
  for (let i = 0; i < Math.max(first.length, other.length); i++) {
    const [x, y] = [first[i], other[i]];
    if (x === y) continue;
    if (!x || !y) {
      const [present, absent, call] = x ? [a, b, x] : [b, a, y!];
      refuse(`rank ${present} calls ${textOf(call)}, but rank ${absent} never does`, {
        rank: absent,
        label: call.label,
      });
    }
    for (const what of ["kind", "count", "dtype"] as const) {
      if (x[what] === y[what]) continue;
      const message = `rank ${b} calls ${textOf(y)} where rank ${a} calls ${textOf(x)}: the ${what} is ${y[what]}, not ${x[what]}`;
      refuse(message, { rank: b, label: y.label, differs: what, found: y[what], expected: x[what] });
    }
  }
}

/** Whatever the counts are, what the ranks bring finds room on each. */
function proveRoom(calls: readonly CollectiveCall[], group: readonly number[]): void {
  calls.forEach((call, i) => {
    if (call.rows === undefined || call.rows.arriving <= call.rows.room) return;
    const { room, arriving } = call.rows;
    const message = `rank ${group[i]} has room for ${room} rows in ${textOf(call)}, but ${arriving} may come`;
    refuse(message, { rank: group[i], label: call.label, room, arriving });
  });
}

/** Lets every call block until its whole group is there; what is left then waits in a circle. */
function proveOrder(perRank: Calls, names: GroupNames): void {
  const next = perRank.map(() => 0);
  const head = (rank: number): CollectiveCall | undefined => perRank[rank]![next[rank]!];
  const laggard = (call: CollectiveCall): number | undefined => {
    const name = names.of(call);
    return call.group.find((rank) => {
      const other = head(rank);
      return other !== call && (other === undefined || names.of(other) !== name);
    });
  };
  const ready = perRank.map((_, rank) => rank);
  for (let rank = ready.pop(); rank !== undefined; rank = ready.pop()) {
    const call = head(rank);
    if (!call || laggard(call) !== undefined) continue;
    for (const member of call.group) next[member]!++;
    ready.push(...call.group);
  }
  let rank = perRank.findIndex((_, r) => head(r) !== undefined);
  if (rank === -1) return;
  const path: number[] = [];
  while (!path.includes(rank)) {
    path.push(rank);
    rank = laggard(head(rank)!)!;
  }
  const cycle = path.slice(path.indexOf(rank));
  const words = cycle.map((r, i) => `rank ${r} waits in ${textOf(head(r)!)} for rank ${cycle[(i + 1) % cycle.length]}`);
  refuse(`the collectives would wait for ever: ${words.join("; ")}`, {
    ranks: cycle,
    labels: cycle.map((r) => head(r)!.label),
  });
}

function textOf({ kind, count, dtype, label, group }: CollectiveCall): string {
  return `${kind} "${label}" (${count} ${dtype}, ranks ${group.join(" ")})`;
}

function refuse(message: string, details: Record<string, unknown>): never {
  throw new PlanError(message, { details });
}
