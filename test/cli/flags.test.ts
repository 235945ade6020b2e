// Flags: values, defaults, config files, and refusals in the user's terms.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { helpText, kebab, parseFlags } from "../../lib/cli/flags.ts";
import { generateFlags } from "../../lib/cli/generate-flags.ts";
import { axisList, deviceCount, meshText, ONE_DEVICE, parseMesh } from "../../lib/cli/mesh-flag.ts";
import { trainFlags } from "../../lib/cli/train-flags.ts";
import { UsageError } from "../../lib/core/errors.ts";

const train = (...args: readonly string[]) => parseFlags(trainFlags, args).values;
const generate = (...args: readonly string[]) => parseFlags(generateFlags, args).values;

function refuses(run: () => unknown, message: RegExp): void {
  assert.throws(run, (error) => {
    assert.ok(error instanceof UsageError, String(error));
    assert.match(error.message, message);
    return true;
  });
}

describe("flags", () => {
  it("have defaults; what the preset decides is undefined", () => {
    const values = train();
    assert.equal(values.model, "demo");
    assert.deepEqual(
      [values.order, values.zero, values.device, values.schedule],
      ["shuffle", undefined, "auto", "1f1b"],
    );
    assert.deepEqual([values.seed, values.field, values.log], [0, "text", "text"]);
    assert.deepEqual(
      [values.steps, values.mesh, values.data, values.precision],
      [undefined, undefined, undefined, undefined],
    );
  });

  it("are read as --flag value and --flag=value, the last one winning", () => {
    const values = train(..."--steps 5 --learning-rate=3e-4 --betas 0.9,0.95 --mesh tp=2 --mesh pp=2,dp=3".split(" "));
    assert.equal(values.steps, 5);
    assert.equal(values.learningRate, 3e-4);
    assert.deepEqual(values.betas, [0.9, 0.95]);
    assert.deepEqual(values.mesh, { ...ONE_DEVICE, pp: 2, dp: 3 });
  });

  it("take lists of words up to the next flag, and add repeated lists up", () => {
    const values = train("--data", "a.txt", "b", "--steps", "3", "--data", "c");
    assert.deepEqual(values.data, ["a.txt", "b", "c"]);
    assert.equal(values.steps, 3);
  });

  it("know tokenizers", () => {
    assert.deepEqual(train("--tokenizer", "bpe:512").tokenizer, { kind: "bpe", vocabSize: 512 });
    refuses(() => train("--tokenizer", "bpe:3"), /--tokenizer: .* from 257 to/);
  });

  it("take prompts that look like flags after an equals sign", () => {
    assert.equal(generate("--prompt=--steps").prompt, "--steps");
    assert.equal(generate("--prompt", "").prompt, "");
    assert.equal(generate("--prompt", "- a list").prompt, "- a list");
    refuses(() => generate("--prompt", "--seed", "1"), /--prompt needs a value/);
    assert.deepEqual(generate("--prompt-tokens", "1,2,3", "--logits").promptTokens, [1, 2, 3]);
  });

  const wrong: readonly (readonly [string, RegExp])[] = [
    ["--stpes 5", /unknown flag --stpes; the nearest is --steps/],
    ["--batchSize 5", /unknown flag --batchSize; the nearest is --batch-size/],
    ["-s 5", /unknown flag -s/],
    ["five", /"five" was not expected/],
    ["--steps 5 6", /"6" was not expected/],
    ["--steps", /--steps needs a value/],
    ["--steps --seed 1", /--steps needs a value/],
    ["--steps 0", /--steps: a whole number from 1 on is expected, not "0"/],
    ["--steps 1.5", /not "1.5"/],
    ["--steps 1e3", /not "1e3"/],
    ["--seed -1", /--seed: a whole number from 0 on is expected, not "-1"/],
    ["--seed 9007199254740993", /--seed/],
    ["--learning-rate NaN", /--learning-rate: a number from 0 on is expected/],
    ["--learning-rate 0x10", /not "0x10"/],
    ["--validation-fraction 1", /a number from 0 to below 1 is expected/],
    ["--betas 0.9", /--betas: two numbers/],
    ["--betas 0.9,1", /--betas: two numbers/],
    ["--zero 4", /--zero: 1, 2 or 3 is expected/],
    ["--precision fp32", /--precision: "fp32" is not one of f32, bf16, fp16; the nearest is "f32"/],
    ["--schedule 1F1B", /the nearest is "1f1b"/],
    ["--mesh xp=2", /--mesh: unknown axis "xp"; the nearest is/],
    ["--mesh dp=2,dp=2", /axis "dp" is given twice/],
    ["--mesh dp=0", /axis "dp" has size "0"/],
    ["--mesh dp=-2", /size "-2"/],
    ["--mesh dp=2.5", /size "2.5"/],
    ["--mesh dp", /"dp" is no axis and size/],
    ["--mesh dp=60000,tp=60000", /3600000000 devices are too many/],
    ["--help=yes", /--help takes no value/],
    ["--config /nonesuch.json", /--config \/nonesuch.json: no such file/],
  ];
  for (const [line, message] of wrong) {
    it(`refuse ${line}`, () => refuses(() => train(...line.split(" ")), message));
  }

  it("ask for help before anything is checked further", () => {
    assert.equal(parseFlags(trainFlags, ["--steps", "zero", "--help"]).help, true);
    assert.equal(parseFlags(trainFlags, ["-h"]).help, true);
  });

  it("are all listed in the help with their defaults", () => {
    const text = helpText("train", "trains", ["meshwork train"], trainFlags);
    for (const name of Object.keys(trainFlags)) assert.ok(text.includes(`--${kebab(name)}`), name);
    assert.match(text, /--seed N .*\[0\]/);
    for (const line of text.split("\n")) assert.ok(line.length <= 110, line);
  });
});

describe("--config", () => {
  let folder: string;
  const config = (content: unknown) => {
    const file = path.join(folder, "config.json");
    writeFileSync(file, typeof content === "string" ? content : JSON.stringify(content));
    return file;
  };
  before(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
  });
  after(() => rmSync(folder, { recursive: true }));

  it("holds flags by camelCase name; flags on the line win", () => {
    const file = config({
      steps: 7,
      batchSize: 4,
      mesh: { tp: 2 },
      data: ["a", "b"],
      betas: [0.8, 0.9],
      zero: 2,
      tokenizer: "byte",
      learningRate: 0,
    });
    const parsed = parseFlags(trainFlags, ["--steps", "9", "--config", file]);
    const { values } = parsed;
    assert.deepEqual([values.steps, values.batchSize, values.zero, values.learningRate], [9, 4, 2, 0]);
    assert.deepEqual(
      [values.data, values.betas],
      [
        ["a", "b"],
        [0.8, 0.9],
      ],
    );
    assert.deepEqual([values.mesh, values.tokenizer], [{ ...ONE_DEVICE, tp: 2 }, { kind: "byte" }]);
    assert.ok(parsed.given.has("steps") && parsed.given.has("zero") && !parsed.given.has("seed"));
    assert.equal(parseFlags(generateFlags, ["--config", config({ logits: true, prompt: "" })]).values.logits, true);
    assert.deepEqual(train("--config", config({ mesh: "tp=2", data: "a" })).data, ["a"]);
  });

  const wrong: readonly (readonly [unknown, RegExp])[] = [
    ["{", /not valid JSON/],
    [[1], /a JSON object of flags is expected/],
    [{ "batch-size": 3 }, /unknown key "batch-size"; the nearest is "batchSize"/],
    [{ constructor: 3 }, /unknown key "constructor"/],
    [{ config: "x" }, /unknown key "config"/],
    [{ steps: "5" }, /"steps": a whole number from 1 on is expected, not "5"/],
    [{ steps: null }, /"steps": .* not "null"/],
    [{ data: [] }, /"data": one or more texts is expected/],
    [{ data: [1] }, /"data"/],
    [{ mesh: { tp: "2" } }, /"mesh": axis "tp" has size "\?"/],
    [{ device: "gpu" }, /"device": "gpu" is not one of auto, cpu, cuda/],
  ];
  for (const [content, message] of wrong) {
    it(`refuses ${JSON.stringify(content)}`, () => refuses(() => train("--config", config(content)), message));
  }
});

describe("mesh", () => {
  it("has its axes in device order, whatever order they are given in", () => {
    const mesh = parseMesh(" tp=2, dp = 3 ,pp=1");
    assert.equal(deviceCount(mesh), 6);
    assert.equal(meshText(mesh), "dp=3,tp=2");
    assert.equal(meshText(ONE_DEVICE), "one device");
    assert.deepEqual(
      axisList(mesh).map(({ name, size }) => `${name}${size}`),
      ["pp1", "dp3", "fsdp1", "cp1", "ep1", "tp2"],
    );
  });
});
