// Ctrl-C on a real process: it stops within a step or two, the model is saved and loads again, the exit code is 130.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { openCheckpoint } from "../../lib/checkpoint/load.ts";
import { Weights } from "../../lib/checkpoint/safetensors.ts";
import { loadModel } from "../../lib/nn/load.ts";
import type { Line } from "../parity/cli.ts";
import { scratchFolder } from "./small.ts";

const main = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));

describe("an interrupted training", function () {
  this.timeout(60_000);
  const at = scratchFolder();

  /** Trains, sends the signals once so many steps are done, and waits for the end. */
  async function interrupt(after: number, signals: readonly NodeJS.Signals[]) {
    writeFileSync(at("text.txt"), "All that is gold does not glitter.\n".repeat(400));
    const flags = "--layers 2 --width 128 --heads 4 --batch-size 16 --seq-len 64 --steps 100000 --log json --mesh pp=2";
    const args = ["train", ...flags.split(" "), "--data", at("text.txt"), "--out", at("run")];
    const child = spawn(process.execPath, ["--import", "tsx/esm", main, ...args], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (text) => (stderr += text));
    const ended = once(child, "exit");
    const lines: Line[] = [];
    let late = 0;
    let sent = false;
    for await (const text of createInterface({ input: child.stdout })) {
      const line: Line = JSON.parse(text);
      lines.push(line);
      if (line.type !== "step") continue;
      if (sent) late++;
      if (sent || Number(line.step) < after) continue;
      sent = true;
      for (const signal of signals) child.kill(signal);
    }
    const [code, signal] = await ended;
    return { code, signal, stderr, lines, late };
  }

  it("saves a checkpoint and its model, which load again, and exits with 130", async () => {
    const { code, signal, stderr, lines, late } = await interrupt(5, ["SIGTERM"]);
    assert.deepEqual([code, signal], [130, null], stderr);
    // The step that runs when the signal comes, and one whose line was on its way.
    assert.ok(late <= 2, `${late} steps after the signal`);
    assert.ok(!lines.some(({ type }) => type === "done"));
    const model = await loadModel(at("run/model"));
    assert.ok(model.parameters().every((p) => p.loaded?.every(Number.isFinite)));
    using checkpoint = await openCheckpoint(at("run"));
    assert.equal(checkpoint.step, lines.findLast(({ type }) => type === "step")!.step);
    assert.deepEqual(readdirSync(at("run/checkpoints")).length, 2);
    const kept = readFileSync(at("run/metrics.jsonl"), "utf8").trim().split("\n");
    assert.equal(kept.length, lines.length);
  });

  it("leaves a whole model or none when interrupted again while it saves", async () => {
    const { code, signal, stderr } = await interrupt(3, ["SIGINT", "SIGTERM"]);
    assert.deepEqual([code, signal], [130, null], stderr);
    const file = at("run/model/model.safetensors");
    if (!existsSync(file)) return;
    await using weights = await Weights.open(file);
    for (const name of weights.tensors.keys()) assert.ok((await weights.read(name)).every(Number.isFinite), name);
  });
});
