// Seeded mistakes in when things happen, and how often: stages, schedules, slots, cells, the update, recomputation.
import type { Mutant } from "./mutant.ts";

const schedules: readonly Mutant[] = [
  {
    name: "values are sent when their maker begins",
    class: "send before its time",
    file: "lib/passes/order.ts",
    find: "const sent = ({ maker }: Crossing): number => end(maker) - 0.75;",
    replace: "const sent = ({ maker }: Crossing): number => starts[maker]! - 0.75;",
  },
  {
    name: "a value is received for the last segment that reads it",
    class: "received too late",
    file: "lib/passes/stage.ts",
    find: "reader: known ? earlier(known.reader, reader) : reader",
    replace: "reader",
  },
  {
    name: "stages send to the first replica",
    class: "wrong peer",
    file: "lib/compile/device-actions.ts",
    find: "layout.rank({ ...coordinates, pp: deviceOfStage[peerStage]! })",
    replace: "layout.rank({ pp: deviceOfStage[peerStage]! })",
  },
  {
    name: "a slot is taken while sends from it are under way",
    class: "missed wait",
    file: "lib/passes/actions.ts",
    find: "this.#waits.push(...waits);",
    replace: "",
  },
  {
    name: "a slot is free as its last use begins",
    class: "memory reused too early",
    file: "lib/passes/actions.ts",
    find: "if (this.#last.get(key)! >= at) continue;",
    replace: "if (this.#last.get(key)! > at) continue;",
  },
  {
    name: "gradients of weights read what B left in F's slots",
    class: "memory reused too early",
    file: "lib/passes/slots.ts",
    find: 'return segments.has("F") ? "FW" : "BW";',
    replace: 'return segments.has("F") ? "FB" : "BW";',
  },
  {
    name: "a result may lie on an operand of its own instruction",
    class: "memory reused too early",
    file: "lib/passes/pack.ts",
    find: "other.last < first || last < other.first",
    replace: "other.last <= first || last <= other.first",
  },
  {
    name: "a result takes over an operand that is read again",
    class: "memory reused too early",
    file: "lib/passes/memory.ts",
    find: "before.last !== begin + i || after.first !== begin + i",
    replace: "before.last < begin + i || after.first !== begin + i",
  },
  {
    name: "what microbatches keep is alive in its own segments only",
    class: "memory reused too early",
    file: "lib/passes/lifetimes.ts",
    find: "const loop = scratch ? undefined : this.#loopOf.get(segment);",
    replace: "const loop = undefined;",
  },
  {
    name: "what is sent is free before it was received",
    class: "memory reused too early",
    file: "lib/passes/lifetimes.ts",
    find: 'if (direction === "send") sent.push(view.buffer);',
    replace: "",
  },
  {
    name: "zb-h1 leaves out the last gradients of weights",
    class: "dropped microbatch",
    file: "lib/passes/schedules.ts",
    find: 'const rest = all.slice(Math.max(0, microbatches - stage)).map((m) => run(stage, "W", m));',
    replace: 'const rest = all.slice(Math.max(0, microbatches - stage + 1)).map((m) => run(stage, "W", m));',
  },
  {
    name: "elementwise work of two segments is joined",
    class: "received too late",
    file: "lib/passes/fuse.ts",
    find: "return a.stage >= 0 && a.stage === b.stage && a.segment === b.segment;",
    replace: "return a.stage >= 0 && a.stage === b.stage;",
  },
  {
    name: "the proof of a schedule lets values be sent before they are made",
    class: "a proof that overlooks",
    file: "lib/passes/prove.ts",
    find: 'if (touch.direction === "send" && !ran.has(run))',
    replace: 'if (touch.direction === "send" && ran.size === 0)',
  },
  {
    name: "the proof of slots forgets sends that are under way",
    class: "a proof that overlooks",
    file: "lib/passes/prove.ts",
    find: 'for (const item of action.items) if (item.direction === "send") ledger.underway.set(sends++, item);',
    replace: "sends += action.items.length;",
  },
  {
    name: "the proof of collectives does not compare counts",
    class: "a proof that overlooks",
    file: "lib/passes/prove-collectives.ts",
    find: "if (x[what] === y[what]) continue;",
    replace: 'if (x[what] === y[what] || what === "count") continue;',
  },
];

const microbatches: readonly Mutant[] = [
  {
    name: "of two microbatches the last one's gradients are kept",
    class: "dropped microbatch",
    file: "lib/compile/role.ts",
    find: 'input.sizes.length === 1 ? "store" : "add"',
    replace: 'input.sizes.length <= 2 ? "store" : "add"',
  },
  {
    name: "every microbatch reads the first one's samples",
    class: "dropped microbatch",
    file: "lib/compile/device-actions.ts",
    find: "stagingOffset: entry(name).offset + before + (first + part.start) * row,",
    replace: "stagingOffset: entry(name).offset + before + part.start * row,",
  },
  {
    name: "samples that do not divide by the microbatches are left out",
    class: "lost sample",
    file: "lib/compile/step.ts",
    find: "base + (m < batchSize - base * microbatches ? 1 : 0)",
    replace: "base",
  },
  {
    name: "the loss is divided by the tokens of the first microbatch",
    class: "wrong mean factor",
    file: "lib/compile/device-actions.ts",
    find: "sizes.forEach((_, m) => {",
    replace: "sizes.slice(0, 1).forEach((_, m) => {",
  },
  {
    name: "results are added to their cells twice",
    class: "gradient counted twice",
    file: "lib/compile/role.ts",
    find: "if (other === undefined) this.#depositor.deposit(segment, cell, made, label);",
    replace: `if (other === undefined) {
        for (let twice = 0; twice < 2; twice++) this.#depositor.deposit(segment, cell, made, label);
      }`,
  },
  {
    name: "cells begin with the sums of the step before",
    class: "gradient counted twice",
    file: "lib/compile/role.ts",
    find: "if (this.#input.sizes.length === 1) continue;",
    replace: "if (this.#input.sizes.length >= 1) continue;",
  },
  {
    name: "each segment draws random numbers of its own",
    class: "recomputed otherwise",
    file: "lib/passes/lower.ts",
    find: "params: node.params,",
    replace: 'params: "site" in node.params ? { ...node.params, site: segment } : node.params,',
  },
];

const update: readonly Mutant[] = [
  {
    name: "a weight that two stages share is updated on the first only",
    class: "stale weight",
    file: "lib/passes/close.ts",
    find: "let own: Where = { on: sourceStages(node, stageOf) ?? common, parts: false };",
    replace: "let own: Where = { on: (sourceStages(node, stageOf) ?? common)?.slice(0, 1) ?? null, parts: false };",
  },
  {
    name: "what is updated of a weight under ZeRO-1 and 2 is not gathered",
    class: "stale weight",
    file: "lib/train/update.ts",
    find: 'split ? b.one("assign", [whole, placed(b, made, stored)]) : made',
    replace: "made",
  },
  {
    name: "further reads of a weight count twice",
    class: "tied weight counted twice",
    file: "lib/train/update.ts",
    find: "const sum = (parts: readonly Sym[]): Sym => parts.reduce((x, y) => b.add(x, y));",
    replace: "const sum = (parts: readonly Sym[]): Sym => [...parts, ...parts.slice(1)].reduce((x, y) => b.add(x, y));",
  },
  {
    name: "all stages add what the first has",
    class: "tied weight counted twice",
    file: "lib/passes/close.ts",
    find: "(on ?? among)?.[0] === this.#stage",
    replace: "(on ?? among)?.includes(this.#stage) === true",
  },
  {
    name: "norms of split gradients are those of a rank's part",
    class: "clip by a local norm",
    file: "lib/ops/optimizer.ts",
    find: "factors: ([x]) => ({ inputs: [dimFactors(x!.shape.length)], outputs: [[null]] }),",
    replace: `factors: ([x]) => ({
      inputs: [dimFactors(x!.shape.length)],
      outputs: [[null]],
      reduce: Object.fromEntries(dimFactors(x!.shape.length).map((d) => [d, [null]])),
    }),`,
  },
  {
    name: "a stage's norm is that of its own gradients",
    class: "clip by a local norm",
    file: "lib/passes/close.ts",
    find: "this.#met.set(meeting, met);",
    replace: "this.#met.set(meeting, type.shape.length === 1 ? own : met);",
  },
  {
    name: "gradients below the largest norm are scaled up",
    class: "clip by a local norm",
    file: "lib/train/update.ts",
    find: 'b.binary("min", b.div(clip, b.add(norm, 1e-6)), 1)',
    replace: 'b.binary("max", b.div(clip, b.add(norm, 1e-6)), 1)',
  },
  {
    name: "optimizer state lies as the parameter does",
    class: "optimizer state",
    file: "lib/train/placement.ts",
    find: "return id === parameter.id ? this.spec(parameter) : this.stateSpec(parameter);",
    replace: "return this.spec(parameter);",
  },
  {
    name: "moments are corrected as in the first step",
    class: "optimizer state",
    file: "lib/optim/optimizer.ts",
    find: "scalars: (step) => [1 - betas[0] ** step, 1 - betas[1] ** step],",
    replace: "scalars: () => [1 - betas[0], 1 - betas[1]],",
  },
  {
    name: "an update is done where the gradient is not finite",
    class: "optimizer state",
    file: "lib/train/update.ts",
    find: 'b.reshape(b.cast(b.unary("is_finite", norm), "i32"), [1])',
    replace: 'b.constant(1, "i32", [1])',
  },
];

/** All of this file. */
export const pipelineMutants: readonly Mutant[] = [...schedules, ...microbatches, ...update];
