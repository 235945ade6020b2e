// The collectives a device calls in a run, in order, for the proof that all ranks' calls match.
import { sizeOf } from "../core/shape.ts";
import type { Attribute, TableEntry } from "../ir/lowering.ts";
import type { Action, DeviceTable } from "../passes/encode.ts";
import type { Instruction, ProgramBuilder } from "../passes/lower.ts";
import type { CollectiveCall } from "../passes/prove-collectives.ts";

function groupOf(attribute: Attribute | undefined): (TableEntry & { kind: "group" }) | null {
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

/** The calls of one device: its collective instructions, in the order in which its actions run them. */
export function collectiveCalls(
  program: ProgramBuilder,
  actions: readonly Action[],
  table: DeviceTable,
): CollectiveCall[] {
  const groups = new Map<string, readonly number[]>();
  const ranksOf = (entry: TableEntry & { kind: "group" }): readonly number[] => {
    const key = JSON.stringify(entry);
    const known = groups.get(key) ?? table.group(entry);
    groups.set(key, known);
    return known;
  };
  const bySegment = program.segments.map(({ instructions }) =>
    instructions.flatMap((i): CollectiveCall[] => {
      const entry = groupOf(i.attributes[0]);
      if (!entry) return [];
      const numbers = i.attributes.slice(1).filter((a) => typeof a === "number");
      const bounded = i.kernel === "expert_exchange";
      const kind = bounded ? numbers.slice(0, 1) : numbers;
      return [
        {
          group: ranksOf(entry),
          kind: [i.kernel, ...kind].join(" "),
          count: wholeCount(i),
          rows: bounded ? rowBounds(i, numbers) : undefined,
          dtype: i.outputs[0]!.dtype,
          label: i.label,
        },
      ];
    }),
  );
  return actions.flatMap((a) => (a.kind === "run" ? bySegment[a.segment]! : []));
}
