// The hash that ties programs to the addon's op table (native/core/opcodes.h).
import { createHash } from "node:crypto";
import { elementOps, kernels } from "./kernels.ts";

/** First 32 bits of the SHA-256 of the op table. */
export const opTableHash: number = createHash("sha256")
  .update(JSON.stringify([kernels, elementOps]))
  .digest()
  .readUInt32LE(0);
