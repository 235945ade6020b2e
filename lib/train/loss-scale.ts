// Dynamic loss scaling: float16 gradients of a loss that is multiplied by a power of two neither vanish nor, when the
// factor is halved in time, overflow. The factor is state on the devices, f32 [2] with the number of good steps since
// it changed; the step itself changes it.
import { type ValueSpec, replicated } from "../ir/spec.ts";
import type { Placement } from "./placement.ts";
import type { Sym, SymBuilder } from "../tensor/trace.ts";

/**
 * The factor at first, and its bounds: halved by a gradient that is not finite, doubled by so many good steps in a row.
 */
export const lossScaling = { initial: 2 ** 16, least: 1, most: 2 ** 24, doubledAfter: 2000 } as const;

const suffix = ":loss_scale";

/** Id of the state: that of the model's first trainable parameter with a suffix, as other optimizer state has. */
export function lossScaleId(placement: Placement): string {
  return `${placement.parameters.find((p) => !p.frozen)?.id ?? ""}${suffix}`;
}

/** Its spec, whole on every device; undefined for other ids. */
export function lossScaleSpec(id: string): ValueSpec | undefined {
  return id.endsWith(suffix) ? replicated(1) : undefined;
}

/** What a fresh run begins with. */
export function initialLossScale(): Float32Array {
  return Float32Array.of(lossScaling.initial, 0);
}

function stateOf(b: SymBuilder, id: string): Sym {
  return b.one("parameter", [], { id, dtype: "f32", shape: [2] });
}

/** The factor, f32 []. */
export function lossScale(b: SymBuilder, id: string): Sym {
  return b.reshape(b.slice(stateOf(b, id), 0, 0, 1), []);
}

/** The state after a step, in place; `gate` is 1 (i32 [1]) where its gradient was finite. */
export function nextLossScale(b: SymBuilder, id: string, gate: Sym): Sym {
  const state = stateOf(b, id);
  const [scale, steps] = [b.slice(state, 0, 0, 1), b.slice(state, 0, 1, 2)];
  const good = b.binary("eq", gate, 1);
  const counted = b.select(good, b.add(steps, 1), 0);
  const full = b.binary("eq", counted, lossScaling.doubledAfter);
  const kept = b.select(full, b.binary("min", b.mul(scale, 2), lossScaling.most), scale);
  const halved = b.binary("max", b.mul(scale, 0.5), lossScaling.least);
  const next = b.concat([b.select(good, kept, halved), b.select(full, 0, counted)], 0);
  return b.one("assign", [state, next], { everywhere: true });
}
