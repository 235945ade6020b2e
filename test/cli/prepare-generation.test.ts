// generate's settings: prompt, tokenizer and room put together; contradictions refused.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { parseFlags } from "../../lib/cli/flags.ts";
import { generateFlags } from "../../lib/cli/generate-flags.ts";
import { prepareGeneration } from "../../lib/cli/prepare-generation.ts";
import { MeshworkError } from "../../lib/core/errors.ts";
import { trainBpe } from "../../lib/data/bpe.ts";

const prepare = (...args: readonly string[]) => prepareGeneration(parseFlags(generateFlags, args).values);

describe("generate's settings", () => {
  let folder: string;
  const gpt2 = { model_type: "gpt2", vocab_size: 256, n_positions: 16, n_embd: 16, n_layer: 1, n_head: 2 };
  const model = (name: string, config: object, files: ReadonlyMap<string, string> = new Map()) => {
    const made = path.join(folder, name);
    mkdirSync(made, { recursive: true });
    writeFileSync(path.join(made, "config.json"), JSON.stringify({ ...gpt2, ...config }));
    for (const [file, content] of files) writeFileSync(path.join(made, file), content);
    return made;
  };
  before(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
  });
  after(() => rmSync(folder, { recursive: true }));

  it("take bytes where the folder has no tokenizer", async () => {
    const ready = await prepare("--model", model("bytes", { eos_token_id: 0 }), "--prompt", "hé", "--max-tokens", "5");
    assert.deepEqual(ready.promptTokens, [104, 0xc3, 0xa9]);
    assert.deepEqual([ready.maxTokens, ready.tokenizer?.name, [...ready.endTokens]], [5, "byte", [0]]);
  });

  it("take the folder's tokenizer, whose end of text begins an empty prompt", async () => {
    const bpe = trainBpe(["the cat the cat the cat the hat"], 262);
    const ready = await prepare("--model", model("bpe", { vocab_size: 262 }, bpe.files), "--prompt", "");
    assert.deepEqual(ready.promptTokens, [261]);
    assert.ok(ready.endTokens.has(261));
    assert.equal(ready.maxTokens, 16);
  });

  it("take ids without any tokenizer", async () => {
    const ready = await prepare(
      "--model",
      model("few", { vocab_size: 8 }),
      "--prompt-tokens",
      "1,2,7",
      "--temperature",
      "0",
    );
    assert.deepEqual([ready.promptTokens, ready.tokenizer], [[1, 2, 7], undefined]);
    assert.equal(ready.sample(Float32Array.of(0, 2, 1), 0), 1);
  });

  it("are refused where they are missing or contradict each other", async () => {
    const bytes = ["--model", model("bytes", {})];
    const few = ["--model", model("few", { vocab_size: 8 })];
    const refused: readonly (readonly [readonly string[], RegExp])[] = [
      [["--prompt", "x"], /--model is needed/],
      [["--model", path.join(folder, "none"), "--prompt", "x"], /no such folder/],
      [bytes, /--prompt TEXT or --prompt-tokens/],
      [[...bytes, "--prompt", "x", "--prompt-tokens", "1"], /not both/],
      [[...bytes, "--prompt", ""], /no token to begin/],
      [[...bytes, "--prompt", "x".repeat(17)], /17 tokens, the model 16 positions/],
      [[...few, "--prompt", "x"], /no tokenizer\.json/],
      [[...few, "--prompt-tokens", "1,8"], /token 1 is 8, beyond the vocabulary of 8/],
    ];
    for (const [args, message] of refused) {
      await assert.rejects(prepare(...args), (error) => error instanceof MeshworkError && message.test(error.message));
    }
  });
});
