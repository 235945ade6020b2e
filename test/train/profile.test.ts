// Profiles of steps: the trace nests, times add up; `meshwork train --profile` writes both.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { runCommand } from "../../lib/cli/verbs.ts";
import { chromeTrace, opTable, timeByOp } from "../../lib/train/profile.ts";
import { scratchFolder } from "../errors/small.ts";

interface Slice {
  readonly name: string;
  readonly ph: "M" | "X";
  readonly cat: string;
  readonly tid: number;
  readonly ts: number;
  readonly dur: number;
  readonly args: Readonly<Record<string, string>>;
}

const slices = (text: string): Slice[] => {
  const { traceEvents }: { traceEvents: Slice[] } = JSON.parse(text);
  return traceEvents;
};

describe("profile of steps", () => {
  const run = (segment: "F" | "B" | null, instructions: number) => ({ segment, stage: 0, microbatch: 1, instructions });
  const devices = [{ rank: 0, device: "cpu:0", runs: [run(null, 1), run("F", 2), run("B", 1)] }];
  const event = (op: string, label: string, begin: number, end: number) => ({ device: 0, op, label, begin, end });
  const events = [
    event("feed", "feed", 0, 0.1),
    event("elementwise", "counts", 0.1, 0.2),
    event("matmul", "h.0.mlp", 0.2, 0.4),
    event("transfer", "transfer", 0.4, 0.5),
    event("matmul", "h.0.attn", 0.5, 0.6),
    event("matmul", "h.0.attn", 0.6, 0.9),
  ];
  const steps = [
    { step: 2, began: 10, seconds: 1, events },
    { step: 3, began: 12, seconds: 1, events },
  ];

  it("is a trace with a thread a device and runs around their instructions", () => {
    const all = slices(chromeTrace("mesh pp=1", devices, steps));
    const names = all.filter(({ ph }) => ph === "M").map(({ tid, args }) => [tid, args.name]);
    assert.deepEqual(names, [
      [0, "mesh pp=1"],
      [0, "steps"],
      [1, "cpu:0"],
    ]);
    const first = all.filter(({ ph, tid, ts }) => ph === "X" && tid === 1 && ts < 1e6);
    assert.deepEqual(
      first.map(({ name, ts, dur }) => [name, Math.round(ts), Math.round(dur)]),
      [
        ["stage 0 F microbatch 1", 200_000, 400_000],
        ["stage 0 B microbatch 1", 600_000, 300_000],
        ["feed", 0, 100_000],
        ["counts (elementwise)", 100_000, 100_000],
        ["h.0.mlp (matmul)", 200_000, 200_000],
        ["transfer", 400_000, 100_000],
        ["h.0.attn (matmul)", 500_000, 100_000],
        ["h.0.attn (matmul)", 600_000, 300_000],
      ],
    );
    assert.deepEqual(
      all.filter(({ cat }) => cat === "step").map(({ name, ts, dur }) => [name, ts, dur]),
      [
        ["step 2", 0, 1e6],
        ["step 3", 2e6, 1e6],
      ],
    );
  });

  it("sums times by op, with what is left over", () => {
    const rows = timeByOp(1, steps);
    assert.equal(rows[0]!.op, "matmul");
    assert.deepEqual(
      new Map(rows.map(({ op, calls, seconds }) => [op, [calls, Math.round(seconds * 1e6)]])),
      new Map([
        ["matmul", [3, 600_000]],
        ["feed", [1, 100_000]],
        ["elementwise", [1, 100_000]],
        ["transfer", [1, 100_000]],
        ["idle", [0, 100_000]],
      ]),
    );
    assert.ok(Math.abs(rows.reduce((sum, { share }) => sum + share, 0) - 1) < 1e-9);
    assert.match(opTable(rows), /^op +calls a step +ms a step +share\nmatmul +3 +600\.000 +60\.0 %\n/);
  });
});

describe("meshwork train --profile", function () {
  this.timeout(60_000);
  const at = scratchFolder();
  const train = async (steps: number, ...flags: string[]) => {
    let [out, err] = ["", ""];
    const io = { stdout: { write: (t: string) => (out += t) }, stderr: { write: (t: string) => (err += t) } };
    const model = "--layers 2 --width 16 --heads 2 --batch-size 4 --seq-len 16 --device cpu --data".split(" ");
    const args = ["train", ...model, at("text.txt"), "--steps", String(steps), "--out", at("run"), ...flags];
    const code = await runCommand(args, { ...io, signal: new AbortController().signal });
    return { code, out, err };
  };
  beforeEach(() => writeFileSync(at("text.txt"), "A text of some length, again and again.\n".repeat(200)));

  it("writes a trace of steps 2 to 4 over all devices, and a table", async () => {
    const { code, err } = await train(6, "--mesh", "pp=2,tp=2", "--profile");
    assert.equal(code, 0, err);
    assert.match(err, /profile of steps 2 to 4, .*profile\.json in ui\.perfetto\.dev:\nop +calls a step/);
    assert.match(err, /\nmatmul +[\d.]+ +[\d.]+ +[\d.]+ %\n/);
    const all = slices(readFileSync(at("run/profile.json"), "utf8"));
    assert.deepEqual(
      all.filter(({ cat }) => cat === "step").map(({ name }) => name),
      ["step 2", "step 3", "step 4"],
    );
    for (const tid of [1, 2, 3, 4]) {
      const own = all.filter((s) => s.ph === "X" && s.tid === tid);
      assert.ok(own.some(({ name }) => /^stage \d F microbatch 0$/.test(name)));
      assert.ok(
        own.some(({ name }) => /^h\.\d\..* \(matmul\)$/.test(name)),
        `thread ${tid} names no module`,
      );
      assert.ok(own.some(({ cat }) => cat === "all_reduce"));
    }
  });

  it("goes to a file of one's choice, of a run of one step too; one that cannot be written is an error", async () => {
    const { code, out } = await train(1, "--log", "json", "--profile", at("trace.json"));
    assert.equal(code, 0, out);
    const event = out.split("\n").find((line) => line.startsWith('{"type":"profile"'));
    const { path, steps, ops } = JSON.parse(event ?? "{}");
    assert.deepEqual([path, steps], [at("trace.json"), [1]]);
    assert.ok(ops.some(({ op }: { op: string }) => op === "matmul"));
    assert.ok(slices(readFileSync(at("trace.json"), "utf8")).length > 20);
    const refused = await train(2, "--profile", at("text.txt/there.json"));
    assert.equal(refused.code, 1);
    assert.match(refused.err, /there\.json: cannot be written: /);
    assert.doesNotMatch(refused.err, /step 1\//);
  });
});
