// Draws docs/schedules/*.svg: every schedule simulated on four devices. --check only compares.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { scheduleNames } from "../lib/passes/schedules.ts";
import { simulateSchedule, timelineSvg } from "../lib/train/timeline.ts";

/** The pictures by file name: four devices, eight microbatches, F = B = W of a whole device. */
export function pictures(): Map<string, string> {
  return new Map(
    scheduleNames.map((schedule) => {
      const perDevice = schedule === "interleaved-1f1b" || schedule === "zb-v" ? 2 : 1;
      const whole = 1 / perDevice;
      const times = schedule.startsWith("zb") ? { F: whole, B: whole, W: whole } : { F: whole, B: 2 * whole };
      return [`${schedule}.svg`, timelineSvg(simulateSchedule({ schedule, devices: 4, microbatches: 8, times }))];
    }),
  );
}

/** Where they are kept. */
export const folder = new URL("../docs/schedules/", import.meta.url);

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  mkdirSync(folder, { recursive: true });
  for (const [name, text] of pictures()) {
    const file = new URL(name, folder);
    if (!process.argv.includes("--check")) writeFileSync(file, text);
    else if (readFileSync(file, "utf8") !== text) {
      console.error(`docs/schedules/${name} is not what scripts/schedules.ts draws; run npm run pictures`);
      process.exitCode = 1;
    }
  }
}
