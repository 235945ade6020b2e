// From `generate`'s flags to what a run needs but devices: model config, prompt ids, tokenizer, sampler.
import { stat } from "node:fs/promises";
import { ConfigError, UsageError } from "../core/errors.ts";
import { ByteTokenizer, findTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { createSampler, type Sampler } from "../evaluate/sampler.ts";
import { type ModelConfig, readModelConfig } from "../nn/config.ts";
import type { GenerateOptions } from "./generate-flags.ts";

/** A generation, ready to run. */
export interface PreparedGeneration {
  /** The model's folder. */
  readonly folder: string;
  readonly config: ModelConfig;
  /** At least one id, all of them in the vocabulary. */
  readonly promptTokens: readonly number[];
  /** The most tokens to add: as asked for, and no more than the model has positions for. */
  readonly maxTokens: number;
  /** The folder's, else bytes where the vocabulary can hold them; undefined where neither is there. */
  readonly tokenizer: Tokenizer | undefined;
  /** Ids that end the text. */
  readonly endTokens: ReadonlySet<number>;
  readonly sample: Sampler;
}

/**
 * Reads and checks what is needed. @throws {UsageError} for flags that are missing or contradict; ConfigError,
 * DataError.
 */
export async function prepareGeneration(options: GenerateOptions): Promise<PreparedGeneration> {
  const folder = await modelFolder(options.model);
  const { config } = await readModelConfig(folder);
  const tokenizer = (await findTokenizer(folder)) ?? (config.vocabSize >= 256 ? new ByteTokenizer() : undefined);
  const promptTokens = promptOf(options, tokenizer, config);
  const room = config.maxPositions - promptTokens.length;
  if (room < 0) {
    throw new UsageError(`the prompt has ${promptTokens.length} tokens, the model ${config.maxPositions} positions`);
  }
  // The last token added is never read again, so that it needs no position of its own.
  const maxTokens = Math.min(options.maxTokens, room + 1);
  const endTokens = new Set(config.endTokens);
  if (tokenizer?.endOfText !== undefined) endTokens.add(tokenizer.endOfText);
  return { folder, config, promptTokens, maxTokens, tokenizer, endTokens, sample: createSampler(options) };
}

async function modelFolder(model: string | undefined): Promise<string> {
  if (model === undefined) throw new UsageError("--model is needed: a Hugging Face folder, such as runs/<run>/model");
  const isFolder = await stat(model).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (!isFolder) throw new UsageError(`--model ${model}: no such folder`);
  return model;
}

function promptOf(options: GenerateOptions, tokenizer: Tokenizer | undefined, config: ModelConfig): readonly number[] {
  const { prompt, promptTokens } = options;
  if (prompt !== undefined && promptTokens !== undefined) {
    throw new UsageError("--prompt and --prompt-tokens: one of them, not both");
  }
  if (promptTokens !== undefined) return inVocabulary(promptTokens, config);
  if (prompt === undefined) throw new UsageError("--prompt TEXT or --prompt-tokens 1,2,3 is needed");
  if (tokenizer === undefined) {
    throw new ConfigError(
      `--prompt: the folder has no tokenizer.json, and ${config.vocabSize} tokens are too few for bytes; use --prompt-tokens`,
    );
  }
  const ids = [...tokenizer.encode(prompt)];
  if (ids.length > 0) return inVocabulary(ids, config);
  // An empty prompt begins a text: after the end of another, where there is such a token.
  const begin = tokenizer.endOfText ?? config.endTokens[0];
  if (begin === undefined) throw new UsageError("--prompt: this tokenizer has no token to begin an empty prompt with");
  return inVocabulary([begin], config);
}

function inVocabulary(ids: readonly number[], { vocabSize }: ModelConfig): readonly number[] {
  const beyond = ids.findIndex((id) => id >= vocabSize);
  if (beyond < 0) return ids;
  throw new UsageError(`the prompt's token ${beyond} is ${ids[beyond]}, beyond the vocabulary of ${vocabSize} tokens`);
}
