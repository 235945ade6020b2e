// The benchmarks of kernels and collectives, at small sizes: what they run gives what it should, in every type, and the
// command line chooses.
import assert from "node:assert/strict";
import { benchCollectives } from "../../bench/collectives.ts";
import { everything, parseCommand } from "../../bench/flags.ts";
import { benchKernels } from "../../bench/kernels.ts";
import { testDevice } from "../device.ts";

describe("benchmarks", function () {
  this.timeout(60_000);

  it("of kernels count no wrong element", async () => {
    const { rows } = await benchKernels({
      ...everything,
      device: testDevice,
      types: ["f64", "f16"],
      sizes: [12_288],
    });
    assert.equal(new Set(rows.map((row) => row.kernel)).size, 21);
    for (const row of rows) assert.ok(row.wrong === 0 || row.wrong === "", JSON.stringify(row));
    assert.ok(rows.filter((row) => row.wrong === 0).length >= 20);
  });

  it("of collectives count no wrong element", async () => {
    const { rows } = await benchCollectives({
      ...everything,
      device: testDevice,
      types: ["f32", "f64", "bf16", "f16", "i32"],
      sizes: [100, 4096],
      ranks: [1, 3],
    });
    assert.equal(rows.length, 5 * 5 * 2 * 2);
    for (const row of rows) assert.equal(row.wrong, 0, JSON.stringify(row));
    assert.ok("algbw GB/s" in rows[0]! && "busbw GB/s" in rows[0] && "time us" in rows[0]);
  });

  it("take what to measure from the command line", async () => {
    const { parts, selection } = parseCommand(
      "collectives --ops all_gather,broadcast --types bf16 --sizes 4K,1M --ranks 2 --device cuda".split(" "),
    );
    assert.deepEqual(parts, ["collectives"]);
    assert.deepEqual(selection, {
      device: "cuda",
      ops: ["all_gather", "broadcast"],
      types: ["bf16"],
      sizes: [4096, 2 ** 20],
      ranks: [2],
    });
    assert.throws(() => parseCommand(["--sizes", "4k"]), /a size is a whole number such as/);
    assert.throws(() => parseCommand(["--types", "f8"]), /f8 is not one of f32/);
    await assert.rejects(benchKernels({ ...everything, ops: ["gemm"] }), /no kernel is named gemm; there are copy/);
  });
});
