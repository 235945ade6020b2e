// Logs: JSON lines in full precision; progress for people, live only on a terminal.
import assert from "node:assert/strict";
import { bytesText, countText, createLog, durationText } from "../../lib/cli/log.ts";
import type { StepEvent } from "../../lib/train/events.ts";

function outputs(isTTY: boolean) {
  const text = { out: "", err: "" };
  const stdout = { write: (part: string) => (text.out += part) };
  const stderr = { write: (part: string) => (text.err += part), isTTY, columns: 60 };
  return { text, io: { stdout, stderr, signal: new AbortController().signal } };
}

function step(number: number, more: Partial<StepEvent> = {}): StepEvent {
  const loss = 5.582688331604004;
  const measured = { gradNorm: 1.21, learningRate: 0.002, tokens: 256, seconds: 1, tokensPerSecond: 256 };
  return { type: "step", step: number, loss, ...measured, ...more };
}

describe("--log json", () => {
  it("writes one object a line in full precision, and nothing else", () => {
    const { text, io } = outputs(true);
    const log = createLog({ log: "json", io, steps: 2 });
    log.note("for people");
    log.event({ type: "plan", devices: [{ device: "cpu:0", bytes: 10 }] });
    log.event(step(1));
    log.event(step(2, { loss: Number.NaN, skipped: true }));
    log.close();
    const lines = text.out
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    assert.deepEqual(
      lines.map(({ type }) => type),
      ["plan", "step", "step"],
    );
    assert.equal(lines[1].loss, 5.582688331604004);
    assert.equal(lines[2].loss, null);
    assert.equal(text.err, "");
  });
});

describe("--log text", () => {
  it("redraws one line on a terminal, cut to its width, with the time left", () => {
    const { text, io } = outputs(true);
    let now = 10;
    const log = createLog({ log: "text", io, steps: 100, now: () => now });
    for (let i = 1; i <= 100; i++) {
      now += 1;
      log.event(step(i));
    }
    log.event({ type: "done", steps: 100, loss: 1.5, out: "runs/x" });
    assert.equal(text.err.split("\r").length - 1, 100);
    assert.match(text.err, /step {3}1\/100 {2}loss 5\.5827/);
    for (const line of text.err.split("\r")) assert.ok(line.replace("\x1b[K", "").split("\n")[0]!.length < 60);
    assert.match(text.err, /\ndone: 100 steps in 1m40s, loss 1\.5000\n$/);
    assert.equal(text.out, "runs/x\n");
  });

  it("draws at most ten times a second, the last step always", () => {
    const { text, io } = outputs(true);
    let now = 0;
    const log = createLog({ log: "text", io, steps: 1000, now: () => now });
    for (let i = 1; i <= 1000; i++) {
      now += 0.001;
      log.event(step(i));
    }
    const drawn = text.err.split("\r").length - 1;
    assert.ok(drawn >= 8 && drawn <= 12, `${drawn}`);
    assert.match(text.err, /step 1000\/1000 [^\r]*$/);
  });

  it("prints some twenty lines without a terminal", () => {
    const { text, io } = outputs(false);
    const log = createLog({ log: "text", io, steps: 200 });
    for (let i = 1; i <= 200; i++) log.event(step(i));
    log.event({ type: "eval", step: 200, loss: 2 });
    const lines = text.err.trimEnd().split("\n");
    assert.equal(lines.length, 22);
    assert.ok(!text.err.includes("\r"));
    assert.match(lines.at(-1)!, /step 200: held-out loss 2\.0000/);
  });

  it("says when an update was left out", () => {
    const { text, io } = outputs(false);
    createLog({ log: "text", io, steps: 9 }).event(step(3, { skipped: true }));
    assert.match(text.err, /step 3: the gradient is not finite/);
  });

  it("streams tokens to standard output", () => {
    const { text, io } = outputs(false);
    const log = createLog({ log: "text", io });
    for (const part of ["he", "llo"]) log.event({ type: "token", id: 1, text: part });
    log.event({ type: "done", tokens: [1, 1], text: "hello", timeToFirstToken: 0.25, tokensPerSecond: 12_345 });
    assert.equal(text.out, "hello\n");
    assert.match(text.err, /2 tokens, the first after 0\.25 s, 12\.3k tokens\/s/);
  });

  it("describes the plan", () => {
    const { text, io } = outputs(false);
    const log = createLog({ log: "text", io });
    log.event({ type: "plan", devices: [{ device: "cpu:0", bytes: 3 * 2 ** 20 }] });
    log.event({ type: "plan", devices: [1, 2].map((n) => ({ device: `cpu:${n}`, bytes: n * 2 ** 20 })) });
    assert.equal(text.err, "plan: one device (cpu:0), 3.0 MiB\nplan: 2 devices, 1.0 MiB to 2.0 MiB each\n");
  });

  it("describes what each policy of recomputation would take", () => {
    const { text, io } = outputs(false);
    const policies = (["none", "selective", "full"] as const).map((policy, i) => {
      const largestBytes = (3 - i) * 2 ** 20;
      return { policy, bytes: 2 * largestBytes, largestBytes, seconds: 0.5 + i / 8 };
    });
    const devices = [{ device: "cpu:0", bytes: 2 ** 21 }];
    createLog({ log: "text", io }).event({ type: "plan", devices, recompute: "selective", policies });
    assert.equal(
      text.err.split("\n")[1],
      "recomputation, on the fullest device: none 3.0 MiB, about 0.50 s; selective 2.0 MiB, about 0.63 s (taken); " +
        "full 1.0 MiB, about 0.75 s",
    );
  });

  it("has short texts for counts, bytes and durations", () => {
    assert.deepEqual([0, 1023, 1024, 1.5 * 2 ** 30].map(bytesText), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
    assert.deepEqual([3.1, 8258, 12_345, 1_750_000].map(countText), ["3.10", "8258", "12.3k", "1.75M"]);
    assert.deepEqual([0.4, 59.6, 185, 7620].map(durationText), ["0s", "1m00s", "3m05s", "2h07m"]);
  });
});
