// Assembling a compiled step: one program per device, proven to wait for nothing that never comes.
import { pipelineActions } from "../passes/actions.ts";
import { encodeProgram, encodeSegments } from "../passes/encode.ts";
import { align, planMemory } from "../passes/memory.ts";
import { deviceRates } from "../passes/cost.ts";
import { prove } from "../passes/prove.ts";
import { simulate } from "../passes/simulate.ts";
import { proveMemory } from "../passes/prove-memory.ts";
import { type CollectiveCall, proveCollectives } from "../passes/prove-collectives.ts";
import { boundaryOf } from "./boundary.ts";
import { RoleCalls } from "./calls.ts";
import { deviceActions, OutputStaging } from "./device-actions.ts";
import { deviceTable } from "./device-table.ts";
import { expertReserve } from "./expert-plan.ts";
import { refuseIdleDevices } from "./idle.ts";
import { timed, verifyByDefault } from "./passes.ts";
import { Role, type RoleInput, signature } from "./role.ts";
import { runsOf } from "./runs.ts";
import { stagingLayout } from "./staging.ts";
import { timesOf, workOf } from "./work.ts";
import type { CompiledStep, DevicePlan } from "./step.ts";

/** Builds and encodes the programs of all devices. */
export function assemblePrograms(input: RoleInput): CompiledStep {
  const { options, source, sizes } = input;
  const { layout } = options;
  if (options.refuseIdle) refuseIdleDevices(input);
  const { passes } = options;
  const boundary = boundaryOf(input.micro);
  const planned = timed(passes, "schedule", () => pipelineActions(options.schedule, boundary));
  timed(passes, "prove", () => prove(planned.devices, { microbatches: sizes.length, slots: planned.slots }));
  const first = input.micro.get(sizes[0]!)!.graph;
  const work = workOf(first, options.schedule, layout.sizes, options.rates ?? deviceRates.cpu);
  const staging = stagingLayout(
    source.inputs.map(({ name, dtype, shape, batch, layout: order, values }) => ({
      name,
      dtype,
      shape: batch ? [options.batchSize, ...shape] : shape,
      ...(order ? { layout: order } : {}),
      ...(values ? { values } : {}),
    })),
  );
  const roles = new Map<string, KnownRole>();
  const groups = new Map<string, readonly number[]>();
  const outputs = new OutputStaging();
  const programs: Int32Array[] = [];
  const calls: CollectiveCall[][] = [];
  const bindings: string[][] = [];
  const bindingBytes: number[][] = [];
  const devices: DevicePlan[] = [];
  for (let rank = 0; rank < layout.devices; rank++) {
    const column = layout.coordinates(rank).pp ?? 0;
    const key = `${column} ${roleKey(input, rank)}`;
    let known = roles.get(key);
    if (!known) {
      const role = timed(passes, "lower", () => new Role(input, column, rank));
      // All results, also those that another device will fetch: the plan is that of all devices of the role.
      const all = deviceActions(input, role, rank, planned.devices[column]!, staging.entries, new OutputStaging());
      const plan = timed(passes, "memory", () => planMemory(role.program, all, planned.slots));
      if (passes.verify ?? verifyByDefault) timed(passes, "prove", () => proveMemory(role.program, all, plan));
      known = {
        role,
        code: timed(passes, "encode", () => encodeSegments(role.program, plan, role.boundBytes)),
        calls: timed(passes, "prove", () => new RoleCalls(role.program, groups)),
        plan: rolePlan(role, plan),
      };
      roles.set(key, known);
    }
    const { role, code } = known;
    const actions = deviceActions(input, role, rank, planned.devices[column]!, staging.entries, outputs);
    const table = deviceTable(layout, rank);
    calls.push(timed(passes, "prove", () => known.calls.of(actions, table)));
    programs.push(timed(passes, "encode", () => encodeProgram(code, actions, table, sizes.length)));
    bindings.push(role.bound);
    bindingBytes.push(role.boundBytes.map(align));
    devices.push({ rank, ...known.plan, runs: runsOf(role.program, actions) });
  }
  timed(passes, "prove", () => proveCollectives(calls));
  return {
    programs,
    bindings,
    bindingBytes,
    inputs: staging.entries,
    inputBytes: staging.bytes,
    outputs: outputs.entries,
    outputBytes: outputs.bytes,
    devices,
    cells: input.cells,
    sequenceParallel: source.scattered !== null,
    schedule: options.schedule,
    boundary,
    work,
    seconds: simulate(planned.devices, { stages: timesOf(work, options.schedule) }).makespan,
  };
}

function roleKey(input: RoleInput, rank: number): string {
  const { layout } = input.options;
  const parts = input.sizes.map((n, m) => signature(input.micro.get(n)!.graph, layout, layout.place(rank, m)));
  const closing = input.closing.map((g) => (g ? signature(g, layout, layout.place(rank)) : ""));
  return [...parts, ...closing].join(";");
}

/** What the devices of a role have in common. */
interface KnownRole {
  readonly role: Role;
  readonly code: ReturnType<typeof encodeSegments>;
  readonly calls: RoleCalls;
  readonly plan: RolePlan;
}

type RolePlan = Omit<DevicePlan, "rank" | "runs">;

function rolePlan(role: Role, plan: ReturnType<typeof planMemory>): RolePlan {
  return {
    stages: role.stages,
    arenaBytes: plan.arenaBytes,
    aliveBytes: plan.aliveBytes,
    activationBytes: plan.activationBytes,
    pools: plan.pools,
    boundBytes: role.boundBytes.reduce((sum, bytes) => sum + align(bytes), 0),
    cellBytes: role.cellBytes,
    experts: expertReserve(role.program),
    instructions: role.program.segments.reduce((n, s) => n + s.instructions.length, 0),
  };
}
