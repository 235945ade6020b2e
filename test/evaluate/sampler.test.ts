// Samplers: greedy, frequencies, top-k, top-p, repeatability.
import assert from "node:assert/strict";
import { NonFiniteError } from "../../lib/core/errors.ts";
import { createSampler, type SamplerOptions } from "../../lib/evaluate/sampler.ts";

const logits = Float32Array.of(1, 3, 2, 3, Number.NEGATIVE_INFINITY);

function frequencies(options: Partial<SamplerOptions>, draws = 4000): number[] {
  const sample = createSampler({ temperature: 1, seed: 3, ...options });
  const counts = new Array<number>(logits.length).fill(0);
  for (let i = 0; i < draws; i++) counts[sample(logits, i)]!++;
  return counts.map((count) => count / draws);
}

describe("sampler", () => {
  it("is greedy at temperature 0, the lowest id among equals", () => {
    assert.equal(createSampler({ temperature: 0, seed: 1 })(logits, 0), 1);
    assert.deepEqual(frequencies({ topK: 1 }), [0, 1, 0, 0, 0]);
    assert.deepEqual(frequencies({ topP: 1e-9 }), [0, 1, 0, 0, 0]);
  });

  it("draws each token as often as its probability", () => {
    for (const temperature of [1, 0.5, 2]) {
      const weights = [...logits].map((logit) => Math.exp(logit / temperature));
      const sum = weights.reduce((a, b) => a + b);
      const found = frequencies({ temperature });
      weights.forEach((weight, id) => {
        const p = weight / sum;
        assert.ok(Math.abs(found[id]! - p) <= 5 * Math.sqrt((p * (1 - p)) / 4000), `${temperature} ${id} ${found[id]}`);
      });
    }
  });

  it("leaves out what top-k and top-p leave out", () => {
    const [first, second] = [frequencies({ topK: 2 }), frequencies({ topP: 0.75 })];
    for (const found of [first, second]) {
      assert.deepEqual([found[0], found[2], found[4]], [0, 0, 0]);
      assert.ok(Math.abs(found[1]! - 0.5) < 0.05);
    }
    assert.equal(frequencies({ topP: 0.9 })[0], 0);
    assert.ok(frequencies({ topP: 0.9 })[2]! > 0);
    assert.deepEqual(frequencies({ topK: 99 }), frequencies({}));
  });

  it("draws the same again for the same seed and index", () => {
    const run = (seed: number) =>
      Array.from({ length: 50 }, (_, i) => createSampler({ temperature: 1, seed })(logits, i)).join();
    assert.equal(run(1), run(1));
    assert.notEqual(run(1), run(2));
  });

  it("refuses logits that are not finite", () => {
    const sample = createSampler({ temperature: 1, seed: 0 });
    for (const bad of [[1, Number.NaN], [Number.POSITIVE_INFINITY], [Number.NEGATIVE_INFINITY], []]) {
      assert.throws(() => sample(Float32Array.from(bad), 7), NonFiniteError);
    }
  });
});
