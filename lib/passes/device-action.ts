// What a device's program does, step by step, once its segments exist. Views are of virtual buffers.
import type { View } from "../ir/lowering.ts";
import type { Slots } from "./slots.ts";

/** One thing a device does. */
export type Action =
  | ({ readonly kind: "run"; readonly segment: number; readonly microbatch: number } & InSlots)
  | {
      /** Copies a value from a microbatch's slots on one stage to those on another. */
      readonly kind: "handover";
      readonly from: InSlots & { readonly view: View };
      readonly to: InSlots & { readonly view: View };
      readonly segment: number;
      readonly microbatch: number;
    }
  | { readonly kind: "transfer"; readonly items: readonly TransferItem[] }
  | { readonly kind: "wait"; readonly send: number }
  | ({
      readonly kind: "feed";
      readonly stagingOffset: number;
      readonly view: View;
      readonly bytes: number;
    } & InSlots)
  | { readonly kind: "fetch"; readonly stagingOffset: number; readonly view: View; readonly bytes: number };

/** The slots of a microbatch on a stage. */
export interface InSlots {
  readonly stage: number;
  readonly slots: Slots;
}

/** One side of a transfer. */
export interface TransferItem extends InSlots {
  readonly direction: "send" | "receive";
  readonly peer: number;
  readonly tag: number;
  readonly view: View;
}

/** The action that runs a segment outside of any microbatch. */
export function runOf(segment: number): Action {
  return { kind: "run", segment, stage: 0, slots: {}, microbatch: 0 };
}
