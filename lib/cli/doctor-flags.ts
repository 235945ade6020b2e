// The flags of `meshwork doctor`.
import { type FlagValues, switchFlag } from "./flags.ts";

export const doctorFlags = {
  json: switchFlag({ help: "one JSON object on standard output, for programs and bug reports" }),
};

/** Values of `meshwork doctor`'s flags. */
export type DoctorOptions = FlagValues<typeof doctorFlags>;
