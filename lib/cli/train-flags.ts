// The flags of `meshwork train`.
import { DataError, UsageError } from "../core/errors.ts";
import { parseTokenizerChoice, type TokenizerChoice } from "../data/tokenizer.ts";
import { deviceFlag, logFlag, meshFlag, precisionFlag, seedFlag } from "./common-flags.ts";
import {
  choiceFlag,
  type FlagValues,
  integerFlag,
  maybeTextFlag,
  numberFlag,
  parseNumbers,
  textFlag,
  textsFlag,
  valueFlag,
} from "./flags.ts";

/** Adam's decay rates of the first and second moment. */
export type Betas = readonly [number, number];

const tokenizerFlag = valueFlag<TokenizerChoice>({
  help: "byte, a tokenizer.json, or bpe:N to train one of N tokens; not for token files",
  value: "byte|FILE|bpe:N",
  expected: "byte, bpe:N or a file",
  defaultText: "the model folder's, else byte",
  parse: tokenizerOf,
  fromJson: (value) => (typeof value === "string" ? tokenizerOf(value) : undefined),
});

function tokenizerOf(word: string): TokenizerChoice | undefined {
  if (word === "") return undefined;
  try {
    return parseTokenizerChoice(word);
  } catch (cause) {
    if (cause instanceof DataError) throw new UsageError(cause.message, { cause });
    throw cause;
  }
}

const betasFlag = valueFlag<Betas>({
  help: "AdamW's decay rates of its two moments",
  value: "B1,B2",
  expected: "two numbers from 0 to below 1, such as 0.9,0.95,",
  defaultText: "the preset's",
  parse: betasOf,
  fromJson: betasOf,
});

function betasOf(value: unknown): Betas | undefined {
  const [first, second] = parseNumbers(value, 2) ?? [];
  const within = (beta: number | undefined): beta is number => beta !== undefined && beta >= 0 && beta < 1;
  return within(first) && within(second) ? [first, second] : undefined;
}

const zeroFlag = valueFlag<1 | 2 | 3>({
  help: "what the fsdp axis splits: 1 optimizer state, 2 and gradients, 3 and parameters",
  value: "1|2|3",
  expected: "1, 2 or 3",
  defaultText: "3; only with an fsdp axis in --mesh",
  parse: (word) => zeroOf(Number(word)),
  fromJson: zeroOf,
});

function zeroOf(value: unknown): 1 | 2 | 3 | undefined {
  return ([1, 2, 3] as const).find((level) => level === value);
}

const PRESET = "the preset's";

export const trainFlags = {
  model: textFlag({
    help: "a Hugging Face folder (config.json, weights if there are any), or a preset: demo, gpt2, gpt2-medium, ...",
    value: "DIR|PRESET",
    default: "demo",
  }),
  layers: integerFlag({ help: "layers of a preset", min: 1, max: 100_000, defaultText: PRESET }),
  width: integerFlag({ help: "width of a preset", min: 1, max: 1_048_576, defaultText: PRESET }),
  heads: integerFlag({ help: "attention heads of a preset", min: 1, max: 65_536, defaultText: PRESET }),
  kvHeads: integerFlag({ help: "key-value heads of a Llama preset", min: 1, max: 65_536, defaultText: PRESET }),
  vocab: integerFlag({
    help: "vocabulary of a preset",
    min: 1,
    max: 2 ** 31 - 1,
    defaultText: "that of --tokenizer, else the preset's",
  }),
  init: choiceFlag(["weights", "random"], {
    help: "start from the folder's weights, or afresh",
    defaultText: "weights where there are any",
  }),
  data: textsFlag({
    help: "text files, folders, globs; .jsonl; .u16 and .u32 token files",
    value: "PATH...",
    defaultText: "the .d.ts files of @types/node",
  }),
  field: textFlag({ help: "the field of a .jsonl line that holds the text", value: "NAME", default: "text" }),
  tokenizer: tokenizerFlag,
  order: choiceFlag(["shuffle", "sequential"], {
    help: "shuffled by seed, or in sequence: sample b of step s begins at token (s*B+b)*T",
    default: "shuffle",
  }),
  validationFraction: numberFlag({
    help: "share of the data held out",
    min: 0,
    below: 1,
    defaultText: "0.02 for shuffle, 0 for sequential",
  }),
  evalEvery: integerFlag({
    help: "steps between evaluations of the held-out loss; 0: only at the end",
    min: 0,
    defaultText: PRESET,
  }),
  steps: integerFlag({ help: "optimizer steps", min: 1, defaultText: PRESET }),
  batchSize: integerFlag({ help: "samples a step, of all devices together", min: 1, defaultText: PRESET }),
  seqLen: integerFlag({ help: "tokens a sample", min: 1, defaultText: PRESET }),
  microbatches: integerFlag({ help: "parts a batch is split into", min: 1, defaultText: "1 without pp, else 2 x pp" }),
  mesh: meshFlag,
  zero: zeroFlag,
  capacityFactor: numberFlag({
    help: "most choices of a sample that an expert takes, times its even share; others are dropped and counted",
    min: 0,
    defaultText: "none is dropped",
  }),
  sequenceParallel: choiceFlag(["auto", "on", "off"], {
    help: "activations split along their sequence over tp; auto: where it is estimated to be faster",
    default: "auto",
  }),
  device: deviceFlag,
  schedule: choiceFlag(["gpipe", "1f1b", "interleaved-1f1b", "zb-h1", "zb-v"], {
    help: "order of the pipeline's work",
    value: "NAME",
    default: "1f1b",
  }),
  virtualStages: integerFlag({ help: "stages of each device under interleaved-1f1b", min: 1, defaultText: "2" }),
  recompute: choiceFlag(["none", "selective", "full"], {
    help: "what the backward computes again instead of keeping it: attention and activations, or all but blocks' inputs",
    defaultText: "the first that fits the memory",
  }),
  precision: precisionFlag,
  learningRate: numberFlag({ help: "AdamW's peak learning rate", min: 0, defaultText: PRESET }),
  lrSchedule: choiceFlag(["constant", "cosine"], { help: "course of the rate after warmup", defaultText: PRESET }),
  warmup: integerFlag({ help: "steps over which the rate rises to its peak", min: 0, defaultText: PRESET }),
  betas: betasFlag,
  eps: numberFlag({ help: "AdamW's epsilon", min: 0, defaultText: PRESET }),
  weightDecay: numberFlag({
    help: "decoupled decay, on tensors stored with two or more dims only",
    min: 0,
    defaultText: PRESET,
  }),
  clipNorm: numberFlag({ help: "bound of the gradient's norm; 0: none", min: 0, defaultText: PRESET }),
  seed: seedFlag,
  checkpointEvery: integerFlag({
    help: "steps between checkpoints, and one at the end; 0: only when interrupted",
    min: 0,
    default: 0,
  }),
  keep: integerFlag({ help: "checkpoints kept, the newest", min: 1, default: 3 }),
  keepEvery: integerFlag({ help: "kept besides: those of steps that are a multiple of N", min: 1 }),
  onCheckpointError: choiceFlag(["warn", "stop"], {
    help: "when a checkpoint cannot be written: go on with a warning, or stop",
    default: "warn",
  }),
  resume: maybeTextFlag({
    help: "go on with a run: its folder, or one of its checkpoints; all flags as they were unless given again",
    value: "[DIR]",
    defaultText: "without DIR: --out, else the newest run with a checkpoint",
  }),
  onSpike: choiceFlag(["warn", "stop", "rollback"], {
    help: "when the loss jumps: say so, save and stop, or go back to the last checkpoint and past the batch",
    default: "warn",
  }),
  profile: maybeTextFlag({
    help: "times of every op in steps 2 to 4: a Chrome trace for ui.perfetto.dev, and a table",
    value: "[FILE]",
    defaultText: "none; without FILE: profile.json in the run folder",
  }),
  out: textFlag({ help: "the run folder", value: "DIR", defaultText: "runs/<date>-<name>" }),
  log: logFlag,
};

/** Values of `meshwork train`'s flags; undefined where the preset or the model folder decides. */
export type TrainOptions = FlagValues<typeof trainFlags>;
