// `meshwork train --resume`: the same bits as a run never stopped; other layouts; interrupts; what is refused.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { StoredCheckpoint } from "../../lib/checkpoint/stored.ts";
import { runCommand } from "../../lib/cli/verbs.ts";
import { isJsonObject } from "../../lib/core/json.ts";
import { type Batch, Dataset } from "../../lib/data/dataset.ts";
import { scratchFolder } from "../errors/small.ts";

interface Line {
  readonly type: string;
  readonly step: number;
  readonly loss: number;
  readonly [more: string]: unknown;
}

describe("a resumed training", function () {
  this.timeout(120_000);
  const at = scratchFolder();
  const model = "--layers 2 --width 16 --heads 2 --batch-size 6 --seq-len 16 --lr-schedule cosine --warmup 3";

  /** Runs `meshwork train` in this process; `stopAfter` interrupts once that step is done. */
  async function train(flags: string, stopAfter?: number) {
    const controller = new AbortController();
    const lines: Line[] = [];
    let stderr = "";
    const write = (text: string): void => {
      for (const line of text.split("\n").filter((l) => l !== "")) {
        lines.push(JSON.parse(line));
        if (lines.at(-1)!.type === "step" && lines.at(-1)!.step === stopAfter) controller.abort();
      }
    };
    const io = { stdout: { write }, stderr: { write: (text: string) => (stderr += text) } };
    const args = ["train", "--log", "json", "--device", "cpu", ...flags.split(" ").filter((f) => f !== "")];
    const code = await runCommand(args, { ...io, signal: controller.signal });
    const steps = lines.filter(({ type }) => type === "step");
    return { code, lines, stderr, losses: steps.map(({ loss }) => loss) };
  }

  beforeEach(() => {
    const text = Array.from({ length: 400 }, (_, i) => `Line ${i * 7919} of a text that nobody has read ${i}.\n`).join(
      "",
    );
    writeFileSync(at("text.txt"), text);
    const config = { n_layer: 2, n_embd: 16, n_head: 2, n_positions: 16, vocab_size: 256, model_type: "gpt2" };
    mkdirSync(at("dropout"));
    const dropout = { resid_pdrop: 0.1, embd_pdrop: 0.1, attn_pdrop: 0.1 };
    writeFileSync(at("dropout/config.json"), JSON.stringify({ ...config, ...dropout }));
  });

  const base = (): string => `${model} --data ${at("text.txt")}`;
  const dropout = (): string =>
    `--model ${at("dropout")} --tokenizer byte --batch-size 6 --seq-len 16 --lr-schedule cosine --warmup 3 --data ${at("text.txt")}`;

  it("stopped in the middle of 200 steps, has the losses, weights and samples of one never stopped", async () => {
    // Dropout, data shuffled anew in each of almost two epochs, a cosine schedule; evaluations in between.
    const flags = `${dropout()} --steps 200 --mesh tp=2,dp=2 --eval-every 40`;
    const [whole, wholeSamples] = await samplesOf(() => train(`${flags} --out ${at("whole")}`));
    assert.equal(whole.code, 0, whole.stderr);
    assert.equal(whole.losses.length, 200);
    const [first, firstSamples] = await samplesOf(() => train(`${flags} --out ${at("cut")}`, 100));
    assert.deepEqual([first.code, first.losses.length], [130, 100], first.stderr);
    // Under another layout, from the same checkpoint, before the run's own goes on.
    const otherFlags = `--resume ${at("cut")} --mesh dp=3 --out ${at("other")}`;
    const [other, otherSamples] = await samplesOf(() => train(otherFlags));
    const [rest, restSamples] = await samplesOf(() => train(`--resume ${at("cut")}`));
    assert.equal(rest.code, 0, rest.stderr);
    assert.deepEqual([...first.losses, ...rest.losses], whole.losses);
    assert.ok(
      readFileSync(at("whole/model/model.safetensors")).equals(readFileSync(at("cut/model/model.safetensors"))),
    );
    const kept = (name: string): unknown[] =>
      readFileSync(at(`${name}/metrics.jsonl`), "utf8")
        .trim()
        .split("\n")
        .map((line): Line => JSON.parse(line))
        .filter(({ type }) => type === "step" || type === "eval")
        .map(({ type, step, loss }) => [type, step, loss]);
    assert.deepEqual(kept("cut"), kept("whole"));
    assert.equal(rest.lines.find(({ type }) => type === "resume")!.position, 600);
    // The samples that were read are the same ones in the same order, whatever dp is.
    assert.equal(wholeSamples.length, 200);
    assert.deepEqual([...firstSamples, ...restSamples], wholeSamples);
    assert.deepEqual(otherSamples, restSamples);
    assert.ok(new Set(wholeSamples).size > 190, "the order is another one in each epoch");
    assert.equal(other.code, 0, other.stderr);
    other.losses.forEach((loss, i) => {
      const expected = rest.losses[i]!;
      assert.ok(Math.abs(loss - expected) <= 1e-3 * expected, `dp=3 step ${101 + i}: ${loss} and ${expected}`);
    });
  });

  /** What a run gives, and a digest of each batch that it took from its data. */
  async function samplesOf<T>(run: () => Promise<T>): Promise<[T, string[]]> {
    const { batchAt } = Dataset.prototype;
    const digests: string[] = [];
    Dataset.prototype.batchAt = function (this: Dataset, first: number): Batch {
      const batch = batchAt.call(this, first);
      digests.push(createHash("sha256").update(batch.inputs).update(batch.targets).digest("hex"));
      return batch;
    };
    try {
      return [await run(), digests];
    } finally {
      Dataset.prototype.batchAt = batchAt;
    }
  }

  it("goes on under other layouts with the same data and nearly the same losses", async () => {
    const flags = `${base()} --steps 12`;
    const whole = await train(`${flags} --out ${at("other-whole")}`);
    const part = await train(`${flags} --mesh pp=2,tp=2 --checkpoint-every 6 --out ${at("other")}`, 6);
    assert.equal(part.code, 130, part.stderr);
    for (const mesh of ["dp=3", "fsdp=2,tp=2", "pp=2"]) {
      const out = at(`other-${mesh}`);
      const rest = await train(`--resume ${at("other")} --mesh ${mesh} --microbatches 2 --out ${out}`);
      assert.equal(rest.code, 0, rest.stderr);
      const losses = rest.losses;
      assert.equal(losses.length, 6);
      losses.forEach((loss, i) => {
        const expected = whole.losses[6 + i]!;
        assert.ok(Math.abs(loss - expected) <= 2e-4 * expected, `${mesh} step ${7 + i}: ${loss} and ${expected}`);
      });
    }
  });

  it("saves in the background, keeps what is asked for, and resumes at the newest without a folder", async () => {
    const out = at("every");
    const first = await train(`${base()} --steps 10 --checkpoint-every 2 --keep 2 --keep-every 4 --out ${out}`);
    assert.equal(first.code, 0, first.stderr);
    const names = readdirSync(`${out}/checkpoints`).sort();
    assert.deepEqual(names, ["latest", "step-00000004", "step-00000008", "step-00000010"]);
    const more = await train(`--resume --out ${out} --steps 12`);
    assert.equal(more.code, 0, more.stderr);
    assert.equal(more.losses.length, 2);
    using stored = await StoredCheckpoint.open(`${out}/checkpoints/step-00000012`);
    assert.deepEqual((stored.record.parent as { step: number }).step, 10);
  });

  it("takes the newest good checkpoint, with a warning, and says which file was bad", async () => {
    const out = at("damaged");
    await train(`${base()} --steps 6 --checkpoint-every 2 --out ${out}`);
    const file = `${out}/checkpoints/step-00000006/device-0000.safetensors`;
    const bytes = readFileSync(file);
    bytes[bytes.length - 9]! ^= 64;
    writeFileSync(file, bytes);
    const text = await trainText(`--resume ${out}`);
    assert.equal(text.code, 0, text.stderr);
    assert.match(text.stderr, /a damaged checkpoint is passed over: .*step-00000006.device-0000.safetensors, tensor "/);
    assert.match(text.stderr, /resuming after step 4/);
  });

  async function trainText(flags: string) {
    let stderr = "";
    const io = { stdout: { write: () => true }, stderr: { write: (text: string) => (stderr += text) } };
    const code = await runCommand(["train", ...flags.split(" ")], { ...io, signal: new AbortController().signal });
    return { code, stderr };
  }

  it("refuses to become another run, other data, and a second run in its folder", async () => {
    const out = at("every");
    await train(`${base()} --steps 4 --checkpoint-every 2 --out ${out}`);
    const other = await train(`--resume ${out} --seq-len 8`);
    assert.deepEqual([other.code, other.stderr.includes("--seq-len cannot change when a run is resumed")], [2, true]);
    const again = await train(`${base()} --steps 2 --out ${out}`);
    assert.deepEqual([again.code, again.stderr.includes(`--resume ${out}`)], [2, true]);
    writeFileSync(at("text2.txt"), "Something else altogether. ".repeat(200));
    const data = await train(`--resume ${out} --steps 14 --data ${at("text2.txt")}`);
    assert.deepEqual([data.code, data.stderr.includes("not the data that")], [1, true]);
    const nothing = await train(`--resume ${at("dropout")}`);
    assert.deepEqual([nothing.code, nothing.stderr.includes("no checkpoint is there")], [1, true]);
  });

  it("goes back past a batch whose loss jumps, and to the same bits each time", async () => {
    const flags = `${model} --steps 40 --on-spike rollback --checkpoint-every 5`;
    // A stretch of noise in a plain text: the loss jumps where it is read in sequence.
    const plain = "the cat sat on the mat. ".repeat(160);
    const noise = Array.from({ length: 96 }, (_, i) => String.fromCharCode(33 + ((i * i * 31) % 90))).join("");
    writeFileSync(at("noisy.txt"), plain.slice(0, 96 * 26) + noise + plain);
    const data = `--order sequential --data ${at("noisy.txt")} --learning-rate 0.01`;
    const runs = [];
    for (const name of ["a", "b"]) {
      const run = await train(`${flags} ${data} --out ${at(`spike-${name}`)}`);
      assert.equal(run.code, 0, run.stderr);
      const spike = run.lines.find(({ type }) => type === "spike")!;
      assert.equal(spike.step, 27);
      assert.match(String(spike.module), /\w/);
      const rollback = run.lines.find(({ type }) => type === "rollback")!;
      assert.deepEqual([rollback.from, rollback.to, rollback.position], [27, 25, 27 * 6]);
      runs.push(run.losses);
    }
    assert.deepEqual(runs[0], runs[1]);
    assert.equal(runs[0]!.length, 42);
    const stopped = await train(`${flags.replace("rollback", "stop")} ${data} --out ${at("spike-stop")}`);
    assert.equal(stopped.code, 1);
    assert.match(stopped.stderr, /the loss of step 27 .*grew most .*\(ERR_SPIKE\)/);
    using stored = await StoredCheckpoint.open(at("spike-stop/checkpoints/step-00000027"));
    assert.equal(isJsonObject(stored.record.data) && stored.record.data.position, 27 * 6);
  });
});
