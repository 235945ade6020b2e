// The type that `meshwork train` and `generate` compute in where none is given.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { StoredCheckpoint } from "../../lib/checkpoint/stored.ts";
import { precisionOn } from "../../lib/cli/precision.ts";
import { runCommand } from "../../lib/cli/verbs.ts";
import { scratchFolder } from "../errors/small.ts";

describe("the type to compute in", function () {
  this.timeout(20_000);
  const at = scratchFolder();

  it("is bf16 on GPUs and with AMX, f32 elsewhere, and what is asked for", () => {
    assert.equal(precisionOn("cuda", undefined, "avx2"), "bf16");
    assert.equal(precisionOn("cpu", undefined, "amx"), "bf16");
    for (const kernels of ["avx512bf16", "avx512", "avx2", "portable"]) {
      assert.equal(precisionOn("cpu", undefined, kernels), "f32");
    }
    assert.equal(precisionOn("cuda", "f32", "amx"), "f32");
    assert.equal(precisionOn("cpu", "bf16", "portable"), "bf16");
  });

  it("is written down, so that a run that goes on elsewhere keeps it", async () => {
    writeFileSync(at("text.txt"), "A text that nobody has read, a few times over. ".repeat(40));
    const io = { stdout: { write: () => true }, stderr: { write: () => true } };
    const model =
      "--layers 1 --width 8 --heads 1 --batch-size 2 --seq-len 8 --steps 2 --checkpoint-every 2 --device cpu --log json";
    const args = `train ${model} --data ${at("text.txt")} --out ${at("run")}`.split(" ");
    assert.equal(await runCommand(args, { ...io, signal: new AbortController().signal }), 0);
    const record: unknown = JSON.parse(readFileSync(at("run/run.json"), "utf8"));
    const expected = precisionOn("cpu", undefined);
    assert.ok(typeof record === "object" && record !== null && "settings" in record);
    const { settings } = record;
    assert.ok(typeof settings === "object" && settings !== null && "precision" in settings);
    assert.equal(settings.precision, expected);
    using stored = await StoredCheckpoint.open(at("run/checkpoints/step-00000002"));
    const { flags } = stored.record;
    assert.ok(typeof flags === "object" && flags !== null && "precision" in flags);
    assert.deepEqual(flags.precision, { json: expected });
  });
});
