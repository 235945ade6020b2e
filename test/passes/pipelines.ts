// What the tests of pipelines share: schedules, boundaries and edits of action lists.
import type { BoundaryValue, PipelineActions, StageAction, StageTransfer } from "../../lib/passes/actions.ts";
import type { Schedule, ScheduledRun, Segment } from "../../lib/passes/schedule.ts";

/** Activations to the next stage, gradients back: what a chain of layers needs. */
export function chain(stages: number): BoundaryValue[] {
  return Array.from({ length: stages - 1 }, (_, s): BoundaryValue[] => [
    { value: s, from: s, to: s + 1, segment: "F" },
    { value: 100 + s, from: s + 1, to: s, segment: "B" },
  ]).flat();
}

/** A schedule in words, one string of runs per device: "F0 F1 B0 B1"; with several stages per device "0F0 2F0". */
export function scheduleOf(stages: number, microbatches: number, ...devices: string[]): Schedule {
  return {
    name: "test",
    stages,
    microbatches,
    devices: devices.map((words, device) => words.split(" ").map((word) => runOf(word, device))),
  };
}

function runOf(word: string, device: number): ScheduledRun {
  const [, stage, segment, microbatch] = /^(\d*)([FBW])(\d+)$/.exec(word)!;
  return { stage: stage === "" ? device : Number(stage), segment: segment as Segment, microbatch: Number(microbatch) };
}

/** Actions in words: runs as F0@slot, transfers as {>value.microbatch <value.microbatch}, waits as w0. */
export function actionsText(list: readonly StageAction[]): string {
  const side = (i: StageTransfer): string => `${i.direction === "send" ? ">" : "<"}${i.value}.${i.microbatch}`;
  return list
    .map((a) => {
      if (a.kind === "run") return `${a.segment}${a.microbatch}@${Object.values(a.slots).join("/")}`;
      if (a.kind === "handover") return `=${a.send.value}.${a.send.microbatch}`;
      return a.kind === "wait" ? `w${a.send}` : `{${a.items.map(side).join(" ")}}`;
    })
    .join(" ");
}

/** The lists with one device's list changed. */
export function edited(
  { devices }: PipelineActions,
  device: number,
  change: (list: readonly StageAction[]) => readonly StageAction[],
): StageAction[][] {
  return devices.map((list, d) => [...(d === device ? change(list) : list)]);
}

/** A list without the items of transfers that `drop` names. */
export function withoutItems(list: readonly StageAction[], drop: (item: StageTransfer) => boolean): StageAction[] {
  return list.flatMap((a): StageAction[] => {
    if (a.kind !== "transfer") return [a];
    const items = a.items.filter((item) => !drop(item));
    return items.length === 0 ? [] : [{ kind: "transfer", items }];
  });
}
