// The kind of device that conformance, parallel and fuzz tests run on: MESHWORK_TEST_DEVICE, or the CPU.
import type { DeviceKind } from "../lib/runtime/engine.ts";

function chosen(): DeviceKind {
  const name = process.env.MESHWORK_TEST_DEVICE ?? "cpu";
  if (name === "cpu" || name === "cuda") return name;
  throw new Error(`MESHWORK_TEST_DEVICE is cpu or cuda, not ${name}`);
}

export const testDevice: DeviceKind = chosen();
