// Learning-rate schedules: their values at the corners, their course, and what is refused.
import assert from "node:assert/strict";
import fc from "fast-check";
import { ConfigError } from "../../lib/core/errors.ts";
import { constant, cosine, linear } from "../../lib/optim/schedules.ts";

const near = (found: number, expected: number): void =>
  assert.ok(Math.abs(found - expected) < 1e-12, `${found} is not ${expected}`);

describe("learning-rate schedules", () => {
  it("constant gives the rate from the first step, or after its warm-up", () => {
    assert.deepEqual([1, 2, 1000].map(constant(0.5)), [0.5, 0.5, 0.5]);
    assert.deepEqual(
      [1, 2, 3, 4, 5, 6].map((s) => constant({ learningRate: 2, warmupSteps: 4 })(s)),
      [0.5, 1, 1.5, 2, 2, 2],
    );
  });

  it("cosine rises, falls along half a wave, and stays", () => {
    const rate = cosine({ learningRate: 1, warmupSteps: 10, totalSteps: 110, finalFraction: 0.1 });
    near(rate(1), 0.1);
    near(rate(10), 1);
    near(rate(35), 0.1 + 0.9 * 0.5 * (1 + Math.SQRT1_2));
    near(rate(60), 0.55);
    near(rate(110), 0.1);
    near(rate(100000), 0.1);
  });

  it("linear falls in equal parts", () => {
    const rate = linear({ learningRate: 4, warmupSteps: 1, totalSteps: 5 });
    assert.deepEqual([1, 2, 3, 4, 5, 6].map(rate), [4, 3, 2, 1, 0, 0]);
    assert.equal(linear({ learningRate: 1, totalSteps: 4 })(1), 0.75);
  });

  it("ends at the final rate even when the warm-up is the whole of it", () => {
    const rate = cosine({ learningRate: 1, warmupSteps: 3, totalSteps: 3, finalFraction: 0.5 });
    assert.deepEqual([1, 2, 3, 4].map(rate), [1 / 3, 2 / 3, 1, 0.5]);
  });

  it("stay between the final rate and the rate, and never rise after the warm-up", () => {
    const sizes = fc.record({
      warmupSteps: fc.nat(50),
      decay: fc.integer({ min: 1, max: 200 }),
      finalFraction: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    fc.assert(
      fc.property(fc.constantFrom(cosine, linear), sizes, (make, { warmupSteps, decay, finalFraction }) => {
        const rate = make({ learningRate: 2, warmupSteps, totalSteps: warmupSteps + decay, finalFraction });
        for (let step = warmupSteps + 1; step < warmupSteps + decay + 3; step++) {
          assert.ok(rate(step) <= 2 + 1e-12 && rate(step) >= 2 * finalFraction - 1e-12);
          assert.ok(rate(step + 1) <= rate(step) + 1e-12);
        }
      }),
      { seed: 7, numRuns: 100 },
    );
  });

  it("refuse options out of range, and steps before the first", () => {
    const refused: (() => unknown)[] = [
      () => constant(-1),
      () => constant(Number.NaN),
      () => constant(Infinity),
      () => constant({ learningRate: 1, warmupSteps: -1 }),
      () => constant({ learningRate: 1, warmupSteps: 1.5 }),
      () => cosine({ learningRate: 1, totalSteps: 0 }),
      () => cosine({ learningRate: 1, warmupSteps: 11, totalSteps: 10 }),
      () => linear({ learningRate: 1, totalSteps: 10, finalFraction: 1.1 }),
      () => linear({ learningRate: 1, totalSteps: 10, finalFraction: Number.NaN }),
      () => constant(1)(0),
      () => constant(1)(1.5),
    ];
    for (const make of refused) assert.throws(make, ConfigError);
  });
});
