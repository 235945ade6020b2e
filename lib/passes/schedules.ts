// The schedules by name. Each is a small pure function from counts to data; bits do not depend on which is taken.
import { ConfigError, PlanError } from "../core/errors.ts";
import { checkCounts, type Schedule, type ScheduledRun, type ScheduleMaker, type Segment, upTo } from "./schedule.ts";

/** Forwards only: evaluation and inference, on stages that lie on devices as given. */
export function forwardOn(deviceOfStage: readonly number[], microbatches: number): Schedule {
  const stages = deviceOfStage.length;
  checkCounts(stages, microbatches);
  const devices = upTo(Math.max(...deviceOfStage) + 1).map((device) =>
    upTo(stages)
      .filter((stage) => deviceOfStage[stage] === device)
      .flatMap((stage) => upTo(microbatches).map((m) => run(stage, "F", m)))
      .sort((a, b) => a.stage + a.microbatch - (b.stage + b.microbatch) || b.stage - a.stage),
  );
  return { name: "forward", stages, microbatches, devices };
}

/** Forwards only, one stage a device. */
export const forwardOnly: ScheduleMaker = (devices, microbatches) => {
  checkCounts(devices, microbatches);
  return forwardOn(upTo(devices), microbatches);
};

/** All forwards, then all backwards: simple, and holds every microbatch at once. */
export const gpipe: ScheduleMaker = (devices, microbatches) => {
  checkCounts(devices, microbatches);
  return makeSchedule("gpipe", devices, devices, microbatches, (stage) => [
    ...upTo(microbatches).map((m) => run(stage, "F", m)),
    ...upTo(microbatches).map((m) => run(stage, "B", m)),
  ]);
};

/** One forward, one backward: as long as gpipe, but stage s of p holds only min(p - s, m) microbatches. */
export const oneFOneB: ScheduleMaker = (devices, microbatches) => {
  checkCounts(devices, microbatches);
  return makeSchedule("1f1b", devices, devices, microbatches, (stage) => {
    const all = upTo(microbatches);
    return alternate(
      all.map((m) => run(stage, "F", m)),
      all.map((m) => run(stage, "B", m)),
      devices - stage - 1,
    );
  });
};

/**
 * 1F1B on `perDevice` stages a device, stage s on device s mod p (Narayanan et al. 2021): the bubble is `perDevice`
 * times smaller. Microbatches go through in rounds of p to 2p - 1, as evenly as can be, so that any number of them will
 * do.
 */
export function interleaved(perDevice: number): ScheduleMaker {
  return (devices, microbatches) => {
    checkCounts(devices, microbatches);
    checkCounts(perDevice, microbatches);
    const rounds = roundsOf(microbatches, Math.max(1, Math.floor(microbatches / devices)));
    const stages = devices * perDevice;
    return makeSchedule("interleaved-1f1b", devices, stages, microbatches, (device) => {
      const own = upTo(perDevice).map((chunk) => chunk * devices + device);
      const pass = (chunks: readonly number[], segment: Segment): ScheduledRun[] =>
        rounds.flatMap((round) => chunks.flatMap((stage) => round.map((m) => run(stage, segment, m))));
      const ahead = (perDevice - 1) * rounds[0]!.length + (perDevice === 1 ? 1 : 2) * (devices - device - 1);
      return alternate(pass(own, "F"), pass(own.toReversed(), "B"), ahead);
    });
  };
}

/**
 * ZB-H1 (Qi et al. 2023): 1F1B with the gradients of weights by themselves, which fill a part of the bubble. Device s
 * of p delays them by s microbatches: it holds min(p - s, m) microbatches before their backward and at most s + 1 after
 * it, so p in all, which is what 1F1B's first device holds.
 */
export const zeroBubbleH1: ScheduleMaker = (devices, microbatches) => {
  checkCounts(devices, microbatches);
  return makeSchedule("zb-h1", devices, devices, microbatches, (stage) => {
    const all = upTo(microbatches);
    const backwards = all.flatMap((m) => [run(stage, "B", m), ...(m >= stage ? [run(stage, "W", m - stage)] : [])]);
    const rest = all.slice(Math.max(0, microbatches - stage)).map((m) => run(stage, "W", m));
    const forwards = all.map((m) => run(stage, "F", m));
    return [...alternate(forwards, backwards, devices - stage - 1), ...rest];
  });
};

/**
 * ZB-V (Qi et al. 2023): two stages a device, the second half of the pipeline running back over the devices, so that
 * the first device has the last stage and its backward starts at once. With F, B and W of equal length nothing waits
 * but at the start; each device holds as much as 1F1B's first.
 */
export const zeroBubbleV: ScheduleMaker = (devices, microbatches) => {
  checkCounts(devices, microbatches);
  // Written for as many microbatches as fill the pipeline; those that are not there drop out.
  const count = Math.max(microbatches, 2 * devices - 1);
  return makeSchedule("zb-v", devices, 2 * devices, microbatches, (device) =>
    vOrder(device, devices, count).filter(({ microbatch }) => microbatch < microbatches),
  );
};

/** ZB-V's order on one device: `near` is its stage of the first half, `far` that of the second. */
function vOrder(device: number, devices: number, microbatches: number): ScheduledRun[] {
  const stage = { near: device, far: 2 * devices - 1 - device };
  const next: Record<string, number> = {};
  const out: ScheduledRun[] = [];
  const add = (half: "near" | "far", ...segments: Segment[]): void => {
    for (const segment of segments) {
      const key = `${half} ${segment}`;
      const m = next[key] ?? 0;
      if (m < microbatches) out.push(run(stage[half], segment, m));
      next[key] = m + 1;
    }
  };
  const times = (n: number, body: () => void): void => {
    for (let i = 0; i < n; i++) body();
  };
  // The pipeline fills, the second half's stages running in turn with the first's as soon as they can.
  times(2 * (devices - device) - 1, () => add("near", "F"));
  times(device, () => {
    add("far", "F");
    add("near", "F");
  });
  times(devices - device, () => {
    add("far", "F", "B", "W");
  });
  // Steady: a forward and a whole backward of each half.
  times(microbatches - devices, () => {
    add("near", "F", "B", "W");
    add("far", "F", "B", "W");
  });
  // It empties: other devices wait for gradients of inputs, so those of weights come last.
  times(device, () => {
    add("near", "B");
    add("far", "B");
  });
  times(devices - device, () => add("near", "B", "W"));
  times(device, () => add("far", "W"));
  times(device, () => add("near", "W"));
  return out;
}

/** How many stages of a device interleaved-1f1b has where nobody says. */
export const defaultVirtualStages = 2;

const makers: ReadonlyMap<string, ScheduleMaker> = new Map([
  ["gpipe", gpipe],
  ["1f1b", oneFOneB],
  ["interleaved-1f1b", interleaved(defaultVirtualStages)],
  ["zb-h1", zeroBubbleH1],
  ["zb-v", zeroBubbleV],
]);

/** Names that `scheduleMaker` knows. */
export const scheduleNames: readonly string[] = [...makers.keys()];

/**
 * The maker of a named schedule; `virtualStages` is how many stages each device has under interleaved-1f1b. Throws
 * PlanError for a name it does not know, ConfigError for virtual stages of a schedule whose number is fixed.
 */
export function scheduleMaker(name: string, virtualStages?: number): ScheduleMaker {
  const maker = makers.get(name);
  if (!maker) {
    throw new PlanError(`no schedule is named "${name}"; known are ${scheduleNames.join(", ")}`, {
      details: { schedule: name, known: scheduleNames },
    });
  }
  if (virtualStages === undefined) return maker;
  if (name !== "interleaved-1f1b") {
    throw new ConfigError(`virtual stages are interleaved-1f1b's; schedule ${name} has its own number of stages`, {
      details: { schedule: name, virtualStages },
    });
  }
  return interleaved(virtualStages);
}

/** All forwards in turn with the backwards, `ahead` forwards first, so far as there are any. */
function alternate(
  forwards: readonly ScheduledRun[],
  backwards: readonly ScheduledRun[],
  ahead: number,
): ScheduledRun[] {
  const out: ScheduledRun[] = forwards.slice(0, ahead);
  const rest = forwards.slice(ahead);
  for (const backward of backwards) {
    if (backward.segment === "B") out.push(...rest.splice(0, 1));
    out.push(backward);
  }
  return [...out, ...rest];
}

function makeSchedule(
  name: string,
  devices: number,
  stages: number,
  microbatches: number,
  order: (device: number) => readonly ScheduledRun[],
): Schedule {
  return { name, stages, microbatches, devices: upTo(devices).map(order) };
}

function run(stage: number, segment: Segment, microbatch: number): ScheduledRun {
  return { stage, segment, microbatch };
}

/** The numbers 0 to n - 1 in so many consecutive parts, the first ones longer where they cannot be equal. */
function roundsOf(n: number, parts: number): number[][] {
  const start = (part: number): number => part * Math.floor(n / parts) + Math.min(part, n % parts);
  return upTo(parts).map((part) => upTo(n).slice(start(part), start(part + 1)));
}
