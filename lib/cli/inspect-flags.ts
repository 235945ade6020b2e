// The flags of `meshwork inspect`.
import { type FlagValues, switchFlag, wordsFlag } from "./flags.ts";

export const inspectFlags = {
  paths: wordsFlag({
    help: "a run, a checkpoint, a Hugging Face folder or a .safetensors file; two of them are compared",
    value: "DIR [DIR]",
  }),
  verify: switchFlag({ help: "reads checkpoints whole and compares all digests" }),
  json: switchFlag({ help: "one JSON object on standard output" }),
};

/** Values of `meshwork inspect`'s flags. */
export type InspectOptions = FlagValues<typeof inspectFlags>;
