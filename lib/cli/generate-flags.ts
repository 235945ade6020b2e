// The flags of `meshwork generate`.
import { deviceFlag, logFlag, meshFlag, precisionFlag, seedFlag } from "./common-flags.ts";
import { type FlagValues, integerFlag, numberFlag, parseNumbers, switchFlag, textFlag, valueFlag } from "./flags.ts";

const promptTokensFlag = valueFlag<readonly number[]>({
  help: "token ids to continue, instead of a text",
  value: "1,2,3",
  expected: "whole numbers from 0 on, separated by commas,",
  parse: idsOf,
  fromJson: idsOf,
});

function idsOf(value: unknown): readonly number[] | undefined {
  const ids = parseNumbers(value);
  const valid = (id: number) => Number.isInteger(id) && id >= 0 && id < 2 ** 31;
  return ids !== undefined && ids.length > 0 && ids.every(valid) ? ids : undefined;
}

export const generateFlags = {
  model: textFlag({ help: "a Hugging Face folder: the model/ folder of a run, for example", value: "DIR" }),
  prompt: textFlag({ help: "text to continue", mayBeEmpty: true }),
  promptTokens: promptTokensFlag,
  maxTokens: integerFlag({ help: "the most tokens to add", min: 1, default: 100 }),
  temperature: numberFlag({
    help: "spread of the choice among tokens; 0 takes the likeliest (greedy)",
    min: 0,
    default: 1,
  }),
  topK: integerFlag({ help: "choose among the K likeliest tokens", value: "K", min: 1, defaultText: "all" }),
  topP: numberFlag({
    help: "choose among the likeliest tokens that together have probability P",
    value: "P",
    above: 0,
    max: 1,
    defaultText: "1",
  }),
  seed: seedFlag,
  logits: switchFlag({ help: "add the first next-token logits to `done`" }),
  mesh: meshFlag,
  device: deviceFlag,
  precision: precisionFlag,
  log: logFlag,
};

/** Values of `meshwork generate`'s flags. */
export type GenerateOptions = FlagValues<typeof generateFlags>;
