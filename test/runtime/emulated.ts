// Processes in which the device "cuda" is the emulated backend that `npm run test:native` builds.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const built = fileURLToPath(new URL("../../build-native/", import.meta.url));
const lib = new URL("../../lib/index.ts", import.meta.url).href;

/** The machine and the collectives that are emulated. */
export interface Emulated {
  readonly gpus: number;
  readonly collectives: "nccl" | "in-process";
}

/** Runs a module in a process of its own, whose "cuda" is emulated, and parses what it prints. */
export function runEmulated(body: string, { gpus, collectives }: Emulated): unknown {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ["--import", "tsx/esm", "--input-type=module", "-e", `import * as meshwork from ${JSON.stringify(lib)};\n${body}`],
    {
      encoding: "utf8",
      env: {
        ...process.env,
        MESHWORK_TEST_DEVICE: "cuda",
        MESHWORK_CUDA_LIBRARY: `${built}meshwork_cuda_emulated.so`,
        MESHWORK_CUDA_PATH: `${built}nccl-stand-in`,
        MESHWORK_EMULATED_GPUS: String(gpus),
        MESHWORK_COLLECTIVES: collectives,
      },
    },
  );
  assert.equal(status, 0, stderr);
  return JSON.parse(stdout);
}
