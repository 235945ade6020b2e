// Bad input to the command: exit code 1 for what fails, 2 for wrong usage, and a message in the user's words.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { writeSafetensors } from "../../lib/checkpoint/safetensors.ts";
import { command } from "../parity/cli.ts";
import { scratchFolder, smallConfig, smallModel } from "./small.ts";

const quick = ["--layers", "1", "--width", "8", "--heads", "2", "--batch-size", "4", "--seq-len", "8", "--steps", "2"];

describe("errors of the command", function () {
  this.timeout(30_000);

  const at = scratchFolder();
  let text: string[];
  beforeEach(() => {
    writeFileSync(at("text.txt"), "All that is gold does not glitter.\n".repeat(20));
    text = ["--data", at("text.txt"), "--out", at("run")];
  });

  async function fails(what: string, args: readonly string[], expected: 1 | 2, message: RegExp): Promise<void> {
    const { code, lines, stderr } = await command(args);
    assert.match(stderr, message, what);
    assert.doesNotMatch(stderr, /\n {4}at /, `${what}: a stack trace`);
    assert.equal(code, expected, what);
    assert.deepEqual(lines, [], what);
  }

  it("meshes that cannot work", async () => {
    const cases: readonly (readonly [string, 1 | 2, RegExp])[] = [
      ["--mesh tq=2", 2, /unknown axis "tq"; the nearest is "tp"/],
      ["--mesh tp=0", 2, /axis "tp" has size "0"; a whole number from 1 on is expected/],
      ["--mesh tp", 2, /"tp" is no axis and size; an example: dp=2,tp=2,pp=2/],
      ["--mesh tp=2,tp=2", 2, /axis "tp" is given twice/],
      ["--mesh dp=4096", 2, /4096 devices are too many; 1024 are the most/],
      ["--mesh dp=5", 1, /devices with dp=4 would have no work in the whole step; use dp=4 or less \(ERR_PLAN\)/],
      ["--mesh tp=300", 1, /devices with tp=256 would have no work in the whole step; use tp=256 or less \(ERR_PLAN\)/],
      ["--mesh pp=7 --batch-size 8", 1, /blocks cannot fill 7 pipeline stages; use at most \d \(ERR_PLAN\)/],
      ["--mesh fsdp=5", 1, /devices with fsdp=4 would have no work in the whole step; use fsdp=4 or less \(ERR_PLAN\)/],
      ["--mesh cp=2 --seq-len 1", 1, /devices with cp=1 would have no work in the whole step; use cp=1 or less/],
      ["--mesh ep=2", 1, /axis ep splits experts, of which the model has none; leave it out, or use dp \(ERR_PLAN\)/],
    ];
    for (const [flags, code, message] of cases) {
      await fails(flags, ["train", ...quick, ...text, ...flags.split(" ")], code, message);
    }
  });

  it("what this build has not", async () => {
    const cases: readonly (readonly [string, 1 | 2, RegExp])[] = [
      ["--device cuda", 1, /no CUDA (backend|device)/],
      ["--precision f16", 2, /--precision.*f16/],
      ["--schedule zb-h1 --virtual-stages 2 --mesh pp=2", 2, /only --schedule interleaved-1f1b has them/],
      ["--schedule interleaved-1f1b --virtual-stages 0", 2, /--virtual-stages/],
      ["--schedule zb-x", 2, /--schedule/],
    ];
    for (const [flags, code, message] of cases) {
      await fails(flags, ["train", ...quick, ...text, ...flags.split(" ")], code, message);
    }
  });

  it("sizes beyond the machine", async () => {
    const flags = ["--batch-size", "100000000"];
    await fails("batch", ["train", ...quick, ...text, ...flags], 1, /GiB.*smaller.*batch.*\(ERR_PLAN\)/);
    await fails("model", ["train", ...quick, ...text, "--vocab", "2147483647"], 1, /GiB.*\(ERR_PLAN\)/);
  });

  it("data that is missing, empty, too short or beyond the vocabulary", async () => {
    const to = ["--out", at("run")];
    const train = (...args: readonly string[]) => ["train", ...quick, ...to, ...args];
    await fails("missing", train("--data", at("no.txt")), 1, /no\.txt: no such file or folder \(ERR_DATA\)/);
    writeFileSync(at("empty.txt"), "");
    await fails("empty", train("--data", at("empty.txt")), 1, /empty\.txt: the file is empty \(ERR_DATA\)/);
    mkdirSync(at("folder"));
    await fails("an empty folder", train("--data", at("folder")), 1, /folder.*\(ERR_DATA\)/);
    writeFileSync(at("short.txt"), "12345678");
    const short = /shorter than one sample: 8 tokens, where 8 inputs and the token after them need 9/;
    await fails("short", train("--data", at("short.txt")), 1, short);
    writeFileSync(at("odd.u16"), "123");
    await fails("odd", train("--data", at("odd.u16")), 1, /odd\.u16: 3 bytes are no whole number of 2-byte tokens/);
    writeFileSync(
      at("ids.u16"),
      new Uint8Array(Uint16Array.from({ length: 99 }, (_, i) => (i === 7 ? 300 : 1)).buffer),
    );
    const beyond = /ids\.u16: token 7 \(counted from 0\) is 300, beyond the model's vocabulary of 256 tokens/;
    await fails("ids", train("--data", at("ids.u16")), 1, beyond);
  });

  it("weights that do not fit or are damaged", async () => {
    const folder = at("model");
    mkdirSync(folder);
    writeFileSync(path.join(folder, "config.json"), JSON.stringify({ ...smallConfig, vocab_size: 256 }));
    const file = path.join(folder, "model.safetensors");
    const args = ["train", "--model", folder, ...text, "--seq-len", "8", "--batch-size", "4", "--steps", "1"];
    const tensors = smallModel()
      .parameters()
      .map(({ stored: { name, shape } }) => ({
        name,
        shape,
        read: () => new Float32Array(shape.reduce((a, b) => a * b, 1)),
      }));
    await writeSafetensors(file, tensors);
    await fails(
      "shape",
      args,
      1,
      /tensor "wte.weight": its shape is \[16, 8\]; config\.json says \[256, 8\] \(ERR_CHECK/,
    );
    await writeSafetensors(file, tensors.slice(1));
    await fails("missing", args, 1, /tensor "wte.weight": it is missing; shape \[256, 8\] is expected/);
    await writeSafetensors(file, [...tensors, { name: "lm_hat", shape: [1], read: () => new Float32Array(1) }]);
    await fails("both", args, 1, /wte\.weight/);
    const whole = readFileSync(file);
    for (const [what, bytes] of [
      ["empty", Buffer.alloc(0)],
      ["cut in the header", whole.subarray(0, 20)],
      ["cut in the data", whole.subarray(0, -1)],
      ["longer", Buffer.concat([whole, Buffer.alloc(1)])],
    ] as const) {
      writeFileSync(file, bytes);
      await fails(what, args, 1, /model\.safetensors.*\(ERR_CHECKPOINT\)/);
      await fails(what, ["generate", "--model", folder, "--prompt", "x"], 1, /model\.safetensors.*\(ERR_CHECKPOINT\)/);
    }
    writeFileSync(path.join(folder, "config.json"), "{");
    await fails("config", args, 1, /config\.json.*\(ERR_CONFIG\)/);
  });

  it("a run folder that cannot be made, before any work", async () => {
    for (const out of [at("text.txt/run"), at("text.txt"), "/proc/no/such"]) {
      const args = ["train", ...quick, "--data", at("text.txt"), "--out", out];
      await fails(out, args, 1, /cannot be written: (not a folder|no such file or folder) \(ERR_FILE\)/);
    }
    await fails("/dev/full", ["train", ...quick, ...text, "--config", at("none.json")], 2, /none\.json/);
    assert.ok(!existsSync(at("run/model/model.safetensors")));
  });

  it("a run that its plan refuses, which leaves no folder", async () => {
    const folders = existsSync("runs") ? readdirSync("runs") : undefined;
    for (const out of [["--out", at("refused")], []]) {
      const args = ["train", ...quick, "--data", at("text.txt"), ...out, "--mesh", "tp=5", "--schedule", "gpipe"];
      const { code } = await command([...args, "--vocab", "3"]);
      assert.equal(code, 1);
    }
    assert.ok(!existsSync(at("refused")));
    assert.deepEqual(existsSync("runs") ? readdirSync("runs") : undefined, folders);
  });

  it("--zero without an fsdp axis", async () => {
    await fails("zero", ["train", ...quick, ...text, "--zero", "2"], 2, /--zero 2: --mesh has no fsdp axis/);
    await fails("size 1", ["train", ...quick, ...text, "--zero", "3", "--mesh", "dp=2,fsdp=1"], 2, /no fsdp axis/);
  });

  it("a disk that is full", async () => {
    mkdirSync(at("run"));
    symlinkSync("/dev/full", at("run/metrics.jsonl"));
    const { code, stderr } = await command(["train", ...quick, ...text]);
    assert.equal(code, 1);
    assert.match(stderr, /metrics\.jsonl: cannot be written: no space left on the disk \(ERR_FILE\)\n$/);
    assert.doesNotMatch(stderr, /Suppressed/);
    assert.ok(existsSync(at("run/model/config.json")), "the model is saved all the same");
  });

  it("weights larger than files may be, with the old ones kept", async () => {
    const main = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
    const args = ["train", ...quick, ...text, "--width", "64"];
    assert.equal((await command(args)).code, 0);
    const old = readFileSync(at("run/model/model.safetensors"));
    const shell = 'ulimit -f 40; exec "$0" --import tsx/esm "$@"';
    const child = spawnSync("sh", ["-c", shell, process.execPath, main, ...args, "--seed", "1"], { encoding: "utf8" });
    assert.equal(child.status, 1, child.stderr);
    assert.match(
      child.stderr,
      /model\.safetensors: cannot be written: the file is larger than is allowed \(ERR_FILE\)\n$/,
    );
    assert.deepEqual(readFileSync(at("run/model/model.safetensors")), old);
    assert.deepEqual(readdirSync(at("run/model")).sort(), ["config.json", "model.safetensors"]);
  });

  it("generation with what is no model, and meshes that are not supported", async () => {
    await fails("no model", ["generate", "--prompt", "x"], 2, /--model is needed/);
    await fails("no folder", ["generate", "--model", at("none"), "--prompt", "x"], 2, /no such folder/);
    mkdirSync(at("model"));
    writeFileSync(at("model/config.json"), JSON.stringify(smallConfig));
    const generate = (...args: string[]) => ["generate", "--model", at("model"), "--prompt-tokens", "1,2", ...args];
    await fails("ep", generate("--mesh", "ep=2"), 1, /axis ep splits experts, of which the model has none/);
    await fails(
      "ids",
      ["generate", "--model", at("model"), "--prompt-tokens", "1,16"],
      2,
      /beyond the vocabulary of 16/,
    );
  });
});
