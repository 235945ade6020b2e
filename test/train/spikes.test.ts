// The spike detector: quiet and noisy losses, falling ones, jumps, and going on where another one was.
import assert from "node:assert/strict";
import { uniform } from "../../lib/core/philox.ts";
import { ConfigError } from "../../lib/core/errors.ts";
import { SpikeDetector } from "../../lib/train/spikes.ts";

const norms = (most: string) => () =>
  new Map([
    ["a", most === "a" ? 50 : 1],
    ["b", most === "b" ? 50 : 2],
  ]);

/** A loss that falls from 6 towards 2, with noise. */
function lossAt(step: number, noise: number): number {
  return 2 + 4 * Math.exp(-step / 50) + noise * (uniform(3, 4, step) - 0.5);
}

describe("the spike detector", () => {
  it("is silent while losses fall, with little noise and with much", () => {
    for (const noise of [0, 0.05, 0.5, 1]) {
      const detector = new SpikeDetector();
      for (let step = 0; step < 400; step++) assert.equal(detector.watch(lossAt(step, noise), norms("")), undefined);
    }
  });

  it("names the parameter whose gradient grew most when the loss jumps", () => {
    const detector = new SpikeDetector();
    for (let step = 0; step < 60; step++) detector.watch(lossAt(step, 0.1), norms(""));
    const spike = detector.watch(9, norms("b"));
    assert.equal(spike?.module, "b");
    assert.ok(Math.abs(spike.usual - lossAt(56, 0)) < 0.2, String(spike.usual));
    // One jump changes little of what is usual.
    assert.equal(detector.watch(lossAt(61, 0.1), norms("")), undefined);
    assert.equal(detector.watch(9, norms("a"))?.module, "a");
  });

  it("says nothing on few losses, and nothing of those that are not finite", () => {
    const detector = new SpikeDetector({ least: 4 });
    for (const loss of [1, 1.1, 100]) assert.equal(detector.watch(loss, norms("")), undefined);
    assert.equal(detector.watch(Number.NaN, norms("")), undefined);
    assert.deepEqual(detector.losses, [1, 1.1, 100]);
    assert.throws(() => new SpikeDetector({ window: 1 }), ConfigError);
  });

  it("judges as another one whose losses it takes over", () => {
    const [first, second] = [new SpikeDetector({ window: 20 }), new SpikeDetector({ window: 20 })];
    for (let step = 0; step < 50; step++) first.watch(lossAt(step, 0.2), norms(""));
    second.losses = first.losses;
    for (const loss of [2.9, 3, 5, 3, 8]) {
      assert.equal(first.watch(loss, norms("")) === undefined, second.watch(loss, norms("")) === undefined);
    }
  });
});
