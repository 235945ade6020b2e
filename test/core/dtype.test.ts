// Conversion of numbers to the 16-bit floats and back: every bit pattern, rounding at and beside ties, the ends.
import assert from "node:assert/strict";
import { fromBf16, fromF16, fromStorage, toBf16, toF16, toStorage } from "../../lib/core/dtype.ts";
import { Mesh } from "../../lib/index.ts";
import { testDevice } from "../device.ts";

const patterns = Array.from({ length: 2 ** 16 }, (_, i) => i);

/** Numbers between the float16 ones: ties, and as float32 just beside them. */
function between(): number[] {
  const halves = patterns.filter((p) => (p & 0x7c00) !== 0x7c00).filter((_, i) => i % 7 === 0);
  return halves.flatMap((p) => {
    const [low, high] = [fromF16(p), fromF16(p + 1)];
    const tie = Number.isFinite(high) ? (low + high) / 2 : Math.sign(low) * 65520;
    return [tie, tie * (1 + 2 ** -22), tie * (1 - 2 ** -22)];
  });
}

describe("dtypes", function () {
  this.timeout(30_000);

  it("every pattern of float16 and bfloat16 is a number that becomes it again", () => {
    for (const p of patterns) {
      const [half, brain] = [fromF16(p), fromBf16(p)];
      if (Number.isNaN(half)) assert.ok(Number.isNaN(fromF16(toF16(half))));
      else assert.equal(toF16(half), p);
      if (!Number.isNaN(brain)) assert.equal(toBf16(brain), p);
    }
  });

  it("float16 rounds to the nearest, ties to even, and overflows to infinity", () => {
    for (const [value, expected] of [
      [1 + 2 ** -11, 1],
      [1 + 3 * 2 ** -11, 1 + 2 ** -9],
      [65519.9, 65504],
      [65520, Number.POSITIVE_INFINITY],
      [-1e30, Number.NEGATIVE_INFINITY],
      [2 ** -25, 0],
      [2 ** -25 * 1.01, 2 ** -24],
      [2 ** -14 * (1 - 2 ** -12), 2 ** -14],
    ]) {
      assert.equal(fromF16(toF16(value!)), expected);
    }
    assert.ok(Object.is(fromF16(toF16(-0)), -0));
  });

  it("devices convert float16 as JavaScript does", async () => {
    await using mesh = await Mesh.open({ device: testDevice, threads: 1 });
    const bits = Uint16Array.from(patterns);
    const wide = await mesh.fromStorage(bits, "f16", [bits.length]).cast("f32").data();
    assert.deepEqual([...wide], fromStorage("f16", bits));
    const values = between();
    const narrow = await mesh.fromData(Float32Array.from(values), [values.length]).cast("f16").data();
    assert.deepEqual([...narrow], [...toStorage("f16", Float32Array.from(values))]);
  });
});
