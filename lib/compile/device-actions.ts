// The action list of one device: the pipeline's plan with this device's segments, inputs, peers and results.
import { dtypeSize } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import type { View } from "../ir/lowering.ts";
import { batchAxes, type MeshLayout } from "../ir/mesh.ts";
import { shardInterval } from "../ir/spec.ts";
import type { StageAction, StageTransfer } from "../passes/actions.ts";
import type { Action, InSlots, TransferItem } from "../passes/device-action.ts";
import type { Role, RoleInput } from "./role.ts";
import { rankPart, sequenceAxis } from "./sequence.ts";
import type { StagingEntry } from "./step.ts";

/** Output staging: every result is fetched by the first device that offers it. */
export class OutputStaging {
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

/** Everything a device does in a run: feeds, the prologue, its pipeline actions, the closing segment, fetches. */
export function deviceActions(
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
  const run = (segment: number, where: InSlots, microbatch: number): void => {
    if (role.program.segments[segment]!.instructions.length > 0)
      actions.push({ kind: "run", segment, ...inSlots(where), microbatch });
  };
  const feed = (views: ReadonlyMap<string, View>, microbatch: number, where: InSlots): void => {
    for (const [name, view] of views) {
      const { shape, layout: order } = source.inputs.find((i) => i.name === name)!;
      const own = order && rankPart(order, shape, options.batchSize, layout.coordinates(rank)[sequenceAxis] ?? 0);
      const row = (own?.row ?? sizeOf(shape)) * dtypeSize(view.dtype);
      const before = (own?.start ?? 0) * dtypeSize(view.dtype);
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
          stagingOffset: entry(name).offset + before + (first + part.start) * row,
          view,
          bytes,
          ...inSlots(where),
        });
    }
  };
  for (const [name, view] of role.scalars) {
    const { offset, shape } = entry(name);
    const axes = source.inputs.find((i) => i.name === name)!.axes?.[0] ?? [];
    const { start } = shardInterval(shape[0] ?? 1, axes, layout.sizes, layout.place(rank));
    const row = sizeOf(shape.slice(1)) * dtypeSize(view.dtype);
    const bytes = sizeOf(view.dims) * dtypeSize(view.dtype);
    if (bytes > 0) actions.push({ kind: "feed", stagingOffset: offset + start * row, view, bytes, ...nowhere });
  }
  run(role.opening, nowhere, 0);
  if (input.prologue && role.program.segments[role.seeds]!.instructions.length > 0) {
    const first: InSlots = { stage: role.countStage, slots: { FB: 0 } };
    sizes.forEach((_, m) => {
      const { count, countFeeds } = role.shared[role.variantOf[m]!]!;
      feed(countFeeds, m, first);
      run(count, first, m);
    });
    run(role.seeds, nowhere, 0);
  }
  stageActions(role, { layout, rank, deviceOfStage: input.deviceOfStage }, planned, { actions, feed, run });
  run(role.closing, nowhere, 0);
  for (const { name, view } of role.fetches) {
    const offset = outputs.claim(name, view, rank);
    if (offset === undefined) continue;
    const bytes = sizeOf(view.dims) * dtypeSize(view.dtype);
    if (bytes > 0) actions.push({ kind: "fetch", stagingOffset: offset, view, bytes });
  }
  return actions;
}

/** What lies in no slot. */
const nowhere: InSlots = { stage: 0, slots: {} };

interface ActionSink {
  readonly actions: Action[];
  feed(views: ReadonlyMap<string, View>, microbatch: number, where: InSlots): void;
  run(segment: number, where: InSlots, microbatch: number): void;
}

/** Turns planned actions into this device's: its variants' segments, its peers; transfers of nothing fall away. */
function stageActions(
  role: Role,
  { layout, rank, deviceOfStage }: { layout: MeshLayout; rank: number; deviceOfStage: readonly number[] },
  planned: readonly StageAction[],
  sink: ActionSink,
): void {
  const coordinates = layout.coordinates(rank);
  const posted: (number | null)[] = []; // planned send ordinal -> real one, null where nothing is sent
  let sends = 0;
  const item = (planned: StageTransfer): TransferItem[] => {
    const { direction, stage, peerStage, slots, value, microbatch } = planned;
    const view = role.variants[role.variantOf[microbatch]!]!.get(stage)!.crossings.get(value);
    const empty = view === undefined || sizeOf(view.dims) === 0;
    if (direction === "send") posted.push(empty ? null : sends++);
    const peer = layout.rank({ ...coordinates, pp: deviceOfStage[peerStage]! });
    return empty ? [] : [{ direction, peer, tag: value, view, stage, slots }];
  };
  for (const action of planned) {
    if (action.kind === "run") {
      const variant = role.variants[role.variantOf[action.microbatch]!]!.get(action.stage)!;
      if (action.segment === "F") sink.feed(variant.feeds, action.microbatch, action);
      sink.run(variant.segments[action.segment], action, action.microbatch);
    } else if (action.kind === "transfer") {
      const items = action.items.flatMap(item);
      if (items.length > 0) sink.actions.push({ kind: "transfer", items });
    } else if (action.kind === "handover") {
      const { send, receive } = action;
      const known = role.shared[role.variantOf[send.microbatch]!]!.handovers.get(send.value);
      if (!known) continue;
      const { segment, from, to } = known;
      const ends = { from: { ...inSlots(send), view: from }, to: { ...inSlots(receive), view: to } };
      sink.actions.push({ kind: "handover", segment, microbatch: send.microbatch, ...ends });
    } else {
      const send = posted[action.send];
      if (send !== null && send !== undefined) sink.actions.push({ kind: "wait", send });
    }
  }
}

function inSlots({ stage, slots }: InSlots): InSlots {
  return { stage, slots };
}
