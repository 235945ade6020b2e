// Memory plans: what is alive together never shares bytes, results take over operands that are not needed any more, and
// the proof of a plan finds what a wrong one would overwrite.
import assert from "node:assert/strict";
import fc from "fast-check";
import { ProgramError } from "../../lib/core/errors.ts";
import type { View } from "../../lib/ir/lowering.ts";
import { parseModelConfig } from "../../lib/nn/config.ts";
import { createModel } from "../../lib/nn/load.ts";
import { adamw } from "../../lib/optim/optimizer.ts";
import { elementOps } from "../../lib/ops/kernels.ts";
import { type Action, runOf } from "../../lib/passes/device-action.ts";
import { ProgramBuilder } from "../../lib/passes/lower.ts";
import { type MemoryPlan, planMemory } from "../../lib/passes/memory.ts";
import { type Lifetime, mostAlive, packLifetimes } from "../../lib/passes/pack.ts";
import { proveMemory } from "../../lib/passes/prove-memory.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";
import { planTrainStep, type TrainStepOptions } from "../../lib/train/step.ts";

const add = elementOps.add.code;

/** An expression of two inputs whose result is their sum. */
const sum: readonly number[] = [1, add, 0, 0, 1, 0, 1, 2];

describe("packing", () => {
  const lifetime = fc
    .record({ bytes: fc.integer({ min: 0, max: 40 }), first: fc.nat(300), span: fc.nat(90) })
    .map(({ bytes, first, span }): Lifetime => ({ bytes: bytes * 64, first, last: first + span }));

  it("never lets two overlap that are alive together, and takes what is alive at least", () => {
    fc.assert(
      fc.property(fc.array(lifetime, { maxLength: 60 }), (items) => {
        const { offsets, total } = packLifetimes(items);
        assert.ok(total >= mostAlive(items));
        items.forEach((a, i) => {
          assert.ok(offsets[i]! >= 0 && offsets[i]! + a.bytes <= total);
          items.slice(0, i).forEach((b, j) => {
            const together = a.first <= b.last && b.first <= a.last;
            const apart = offsets[i]! + a.bytes <= offsets[j]! || offsets[j]! + b.bytes <= offsets[i]!;
            assert.ok(!together || apart || a.bytes === 0 || b.bytes === 0);
          });
        });
      }),
      { numRuns: 300 },
    );
  });

  it("counts both ends of a lifetime", () => {
    const [a, b, c] = [
      { bytes: 64, first: 0, last: 3 },
      { bytes: 128, first: 3, last: 3 },
      { bytes: 256, first: 4, last: 9 },
    ];
    assert.equal(mostAlive([a!, b!, c!]), 256);
    assert.equal(mostAlive([a!, b!]), 192);
  });
});

/** Programs of one segment on tensors of 16 numbers. */
class Chain {
  readonly program = new ProgramBuilder({});
  readonly segment = this.program.segment("chain");
  readonly actions: Action[] = [];

  fed(dims: readonly number[] = [16]): View {
    const view = this.program.allocate("f32", dims, "step");
    this.actions.push({ kind: "feed", stagingOffset: 0, view, bytes: 64, stage: 0, slots: {} });
    return view;
  }

  made(
    kernel: string,
    inputs: readonly View[],
    attributes: readonly number[],
    output = this.program.allocate("f32", [16], "auto"),
  ): View {
    this.program.emit(this.segment, { kernel, inputs, outputs: [output], attributes, label: "" });
    return output;
  }

  /** Plans and proves the program, which ends with fetching a value. */
  plan(result: View): MemoryPlan {
    const all: Action[] = [
      ...this.actions,
      runOf(this.segment),
      { kind: "fetch", stagingOffset: 0, view: result, bytes: 64 },
    ];
    const plan = planMemory(this.program, all);
    proveMemory(this.program, all, plan);
    return plan;
  }
}

describe("planMemory", () => {
  const offsets = ({ locations }: MemoryPlan, views: readonly View[]): number[] =>
    views.map((v) => locations[v.buffer]!.offset);

  it("lets a result take over an operand that is not needed any more", () => {
    const chain = new Chain();
    const [a, b] = [chain.fed(), chain.fed()];
    const c = chain.made("elementwise", [a, b], sum);
    const d = chain.made("elementwise", [b, c], sum);
    const plan = chain.plan(d);
    assert.equal(plan.arenaBytes, 128);
    assert.equal(plan.aliveBytes, 128);
    const [offsetA, offsetB, offsetC, offsetD] = offsets(plan, [a, b, c, d]);
    assert.equal(offsetC, offsetA);
    assert.ok(offsetD === offsetB || offsetD === offsetC);
  });

  it("leaves an operand alone that is read later, by another view, or by a kernel that says nothing", () => {
    for (const build of [
      (chain: Chain, a: View, b: View) => {
        const both = chain.made("elementwise", [chain.made("elementwise", [a, b], sum), a], sum);
        return chain.made("softmax_grad", [both, b], []);
      },
      (chain: Chain, a: View, b: View) => chain.made("softmax_grad", [a, b], []),
      (chain: Chain, a: View, b: View) => {
        const turned = { ...a, dims: [4, 4], strides: [1, 4] };
        const output = chain.program.allocate("f32", [4, 4], "auto");
        chain.made("elementwise", [{ ...a, dims: [4, 4], strides: [4, 1] }, turned], sum, output);
        return chain.made("softmax_grad", [{ ...output, dims: [16], strides: [1] }, b], []);
      },
      // A bucket that has a tensor twice.
      (chain: Chain, a: View, b: View) => {
        const [x, y] = [chain.program.allocate("f32", [16], "auto"), chain.program.allocate("f32", [16], "auto")];
        const group = { table: { kind: "group", axes: ["dp"] } } as const;
        const reduced = { kernel: "all_reduce", inputs: [a, a], outputs: [x, y], attributes: [group, 0], label: "" };
        chain.program.emit(chain.segment, reduced);
        return chain.made("softmax_grad", [chain.made("softmax_grad", [x, y], []), b], []);
      },
      // One result is an operand itself: it is read when the other is written already.
      (chain: Chain, a: View, b: View) => {
        const [x, y] = [chain.program.allocate("f32", [16], "auto"), chain.program.allocate("f32", [16], "auto")];
        const attributes = [1, add, 0, 0, 1, 0, 2, 2, 0];
        chain.program.emit(chain.segment, {
          kernel: "elementwise",
          inputs: [a, b],
          outputs: [x, y],
          attributes,
          label: "",
        });
        return chain.made("softmax_grad", [x, y], []);
      },
    ]) {
      const chain = new Chain();
      const [a, b] = [chain.fed(), chain.fed()];
      const last = build(chain, a, b);
      const plan = chain.plan(last);
      assert.ok(plan.arenaBytes >= 192, `${plan.arenaBytes}`);
    }
  });

  it("keeps what is sent until it was received, and what is fed from its feed on", () => {
    const chain = new Chain();
    const a = chain.fed();
    const sent = chain.made("softmax", [a], []);
    const item = { direction: "send", peer: 1, tag: 0, view: sent, stage: 0, slots: {} } as const;
    const second = chain.program.segment("after");
    const late = chain.program.allocate("f32", [16], "auto");
    chain.program.emit(second, { kernel: "softmax", inputs: [a], outputs: [late], attributes: [], label: "" });
    const end: Action = { kind: "fetch", stagingOffset: 0, view: late, bytes: 64 };
    const transfer: Action = { kind: "transfer", items: [item] };
    const open = [...chain.actions, runOf(chain.segment), transfer, runOf(second), end];
    const waited = [
      ...chain.actions,
      runOf(chain.segment),
      transfer,
      { kind: "wait", send: 0 } as const,
      runOf(second),
      end,
    ];
    assert.equal(planMemory(chain.program, open).arenaBytes, 192);
    assert.equal(planMemory(chain.program, waited).arenaBytes, 128);
    proveMemory(chain.program, waited, planMemory(chain.program, waited));
    assert.throws(() => proveMemory(chain.program, open, planMemory(chain.program, waited)), ProgramError);
  });

  it("is refused by its proof where two that are needed at once share bytes", () => {
    const chain = new Chain();
    const [a, b] = [chain.fed(), chain.fed()];
    const c = chain.made("softmax_grad", [a, b], []);
    const d = chain.made("softmax_grad", [c, b], []);
    const good = chain.plan(d);
    const all: Action[] = [...chain.actions, runOf(chain.segment)];
    for (const [moved, onto] of [
      [b, a],
      [c, a],
      [c, b],
      [d, c],
    ] as const) {
      const locations = good.locations.map((place, i) => (i === moved.buffer ? good.locations[onto.buffer]! : place));
      assert.throws(() => proveMemory(chain.program, all, { ...good, locations }), ProgramError);
    }
  });
});

describe("the plan of a training step", function () {
  this.timeout(60_000);
  const sizes = { n_embd: 64, n_head: 4, n_layer: 4, vocab_size: 512, n_positions: 64 };
  const plan = async (
    axes: Readonly<Record<string, number>>,
    changes: Partial<TrainStepOptions<"inputs" | "targets">>,
  ) => {
    await using mesh = await Mesh.open({ device: "null", axes });
    const model = createModel(parseModelConfig({ model_type: "gpt2", ...sizes }));
    const { plan: made } = await planTrainStep(mesh, model, {
      loss: ({ inputs, targets }) => model.loss(inputs, targets),
      optimizer: adamw({ learningRate: 1e-3 }),
      batchSize: 8,
      batch: model.batchFields(64),
      clipNorm: 1,
      ...changes,
    });
    return made.devices;
  };

  for (const [axes, changes] of [
    [{}, {}],
    [{}, { precision: "bf16" }],
    [{}, { microbatches: 4 }],
    [{ pp: 2 }, { microbatches: 4 }],
    [{ pp: 2 }, { microbatches: 4, schedule: "zb-h1" }],
    [{ dp: 2, tp: 2 }, {}],
    [{ fsdp: 2 }, {}],
  ] as const) {
    it(`is within 3 % of what is alive at once on ${JSON.stringify({ ...axes, ...changes })}`, async () => {
      for (const { arenaBytes, aliveBytes, device } of await plan(axes, changes)) {
        assert.ok(arenaBytes <= 1.03 * aliveBytes, `${device}: ${arenaBytes} for ${aliveBytes}`);
      }
    });
  }

  it("has gradients where activations were", async () => {
    const [device] = await plan({}, { batchSize: 1 });
    const { arenaBytes, cellBytes, activationBytes } = device!;
    assert.ok(
      arenaBytes < 0.8 * (cellBytes + activationBytes),
      `${arenaBytes} for ${cellBytes} and ${activationBytes}`,
    );
  });
});
