// The plan of a step: exact bytes of every device, before anything is allocated.
import { PlanError } from "../core/errors.ts";
import type { CompiledStep, DevicePlan } from "../compile/step.ts";
import type { Mesh } from "../tensor/mesh.ts";
import type { RecomputePolicy } from "../passes/remat.ts";
import type { Placement } from "./placement.ts";
import { isState } from "./update.ts";

/** Bytes and work of one device. */
export interface PlannedDevice extends DevicePlan {
  /** `cpu:0`. */
  readonly device: string;
  /** Arena and bound buffers together. */
  readonly bytes: number;
  /** boundBytes by what they hold. */
  readonly parameterBytes: number;
  readonly stateBytes: number;
}

/** What a step takes with one policy of recomputation. */
export interface RecomputeOutcome {
  readonly policy: RecomputePolicy;
  /** Of all devices together, and of the one that needs most. */
  readonly bytes: number;
  readonly largestBytes: number;
  /** Predicted, by a simple model of the devices: for comparison. */
  readonly seconds: number;
}

/** What a step that was compiled with a policy takes. */
export function recomputeOutcome(policy: RecomputePolicy, { devices, seconds }: CompiledStep): RecomputeOutcome {
  const each = devices.map((d) => d.arenaBytes + d.boundBytes);
  return { policy, bytes: each.reduce((a, b) => a + b, 0), largestBytes: Math.max(...each), seconds };
}

/** What a step will take. */
export class StepPlan {
  /** What the backward computes again. */
  readonly recompute: RecomputePolicy;
  /** Predicted seconds of a step's microbatches, by a simple model of the devices: for comparing plans. */
  readonly seconds: number;
  /**
   * Bytes and time of policies of recomputation, those that keep most first: of those that were tried until one fitted,
   * or of all (`compareRecompute`).
   */
  readonly policies: readonly RecomputeOutcome[];
  readonly devices: readonly PlannedDevice[];
  readonly mesh: string;
  /** True where activations are split along their sequence over tp. */
  readonly sequenceParallel: boolean;
  /** Paths of the blocks of each pipeline stage. */
  readonly stages: readonly (readonly string[])[];

  constructor(
    mesh: Mesh,
    compiled: CompiledStep,
    placement: Placement,
    recompute: RecomputePolicy,
    policies: readonly RecomputeOutcome[],
  ) {
    this.mesh = String(mesh.layout);
    this.sequenceParallel = compiled.sequenceParallel;
    this.devices = compiled.devices.map((d) => {
      const parameterBytes = compiled.bindings[d.rank]!.reduce(
        (sum, id, i) => sum + (isState(id) ? 0 : compiled.bindingBytes[d.rank]![i]!),
        0,
      );
      return {
        ...d,
        device: `${mesh.engine.kind}:${d.rank}`,
        bytes: d.arenaBytes + d.boundBytes,
        parameterBytes,
        stateBytes: d.boundBytes - parameterBytes,
      };
    });
    const stages: string[][] = Array.from({ length: placement.stages.stages }, () => []);
    for (const [path, stage] of placement.stages.stageOfBlock) stages[stage]!.push(path);
    this.stages = stages;
    this.recompute = recompute;
    this.seconds = compiled.seconds;
    this.policies = policies;
  }

  /** Bytes and time with this plan's policy of recomputation. */
  get outcome(): RecomputeOutcome {
    return this.policies.find(({ policy }) => policy === this.recompute)!;
  }

  /** True when all devices together need no more than so many bytes. */
  fits(memoryBytes: number): boolean {
    return this.outcome.bytes <= memoryBytes;
  }

  /** Throws PlanError when all devices together need more than one machine's memory. */
  expectToFit(memoryBytes: number): void {
    if (this.fits(memoryBytes)) return;
    const needed = this.outcome.bytes;
    const gib = (n: number): string => `${(n / 2 ** 30).toFixed(1)} GiB`;
    throw new PlanError(
      `the step needs ${gib(needed)} of memory, this machine has ${gib(memoryBytes)}: ` +
        "use a smaller model or batch, or more microbatches",
      { details: { needed, memory: memoryBytes } },
    );
  }

  /** A table for people. */
  toString(): string {
    const mib = (n: number): string => (n / 2 ** 20).toFixed(1).padStart(9);
    const lines = [
      `mesh ${this.mesh}, MiB per device`,
      "device   stage     total    params     state     arena gradients  activations  instructions",
    ];
    for (const d of this.devices) {
      const columns = [
        d.device.padEnd(8),
        d.stages.join(",").padStart(5),
        mib(d.bytes),
        mib(d.parameterBytes),
        mib(d.stateBytes),
        mib(d.arenaBytes),
        mib(d.cellBytes),
        `    ${mib(d.activationBytes)}`,
      ];
      lines.push(`${columns.join(" ")} ${String(d.instructions).padStart(13)}`);
    }
    const reserves = this.devices.flatMap((d) => d.experts ?? []);
    if (reserves.length > 0) {
      const most = reserves.reduce((a, b) => (b.bytes > a.bytes ? b : a));
      const [bytes, even] = [mib(most.bytes).trim(), mib(most.evenBytes).trim()];
      lines.push(
        `experts: ${bytes} MiB of that for ${most.rows} rows a layer, the most that may come; ` +
          `${most.evenRows} rows (${even} MiB) come where experts are used evenly`,
      );
    }
    for (const { policy, largestBytes, seconds } of this.policies) {
      const taken = policy === this.recompute && this.policies.length > 1 ? " (taken)" : "";
      lines.push(
        `recompute ${policy}: ${mib(largestBytes).trim()} MiB on the fullest device, ` +
          `about ${seconds.toPrecision(3)} s${taken}`,
      );
    }
    return lines.join("\n");
  }
}
