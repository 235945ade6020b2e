// `meshwork train --profile`: the first steps after the very first, as a trace for Perfetto and a table by op.
import path from "node:path";
import { writeTextAtomically } from "../core/atomic-file.ts";
import type { Mesh } from "../tensor/mesh.ts";
import type { TrainEvent } from "../train/events.ts";
import { chromeTrace, opTable, type ProfiledStep, timeByOp } from "../train/profile.ts";
import type { RunFolder } from "../train/run-folder.ts";
import type { StepResult, TrainStep } from "../train/step.ts";
import type { Log } from "./log.ts";

/**
 * Steps that a profile shows: the second and those behind it, as the first one touches its memory for the first time.
 */
const profiledSteps = 3;

/** What a profile needs of a run. */
export interface ProfiledRun {
  readonly mesh: Mesh;
  readonly step: TrainStep<"inputs" | "targets">;
  readonly folder: RunFolder;
  readonly log: Log;
  readonly options: { readonly profile: string | true | undefined };
  emit(event: TrainEvent): void;
}

/** The profile of a run; does nothing where none is asked for. */
export class RunProfile {
  readonly #run: ProfiledRun;
  readonly #file: string;
  readonly #steps: ProfiledStep[] = [];
  readonly #first: number;
  #began = 0;
  #on = false;

  private constructor(run: ProfiledRun, file: string, first: number) {
    this.#run = run;
    this.#file = file;
    this.#first = first;
  }

  /**
   * `last`: the step that ends the run; a run of one step is profiled in it. @throws {FileError} where the file cannot
   * be written, before any work is done.
   */
  static async open(run: ProfiledRun, last: number): Promise<RunProfile> {
    const { options, folder, step } = run;
    const file = typeof options.profile === "string" ? options.profile : path.join(folder.path, "profile.json");
    if (options.profile !== undefined) await writeTextAtomically(file, '{"traceEvents":[]}\n');
    return new RunProfile(run, file, Math.min(step.step + 2, last));
  }

  /** Before each step, counted from 1. */
  before(step: number): void {
    const wanted = this.#run.options.profile !== undefined && step >= this.#first && this.#steps.length < profiledSteps;
    if (wanted !== this.#on) this.#run.mesh.engine.profile(wanted);
    this.#on = wanted;
    this.#began = performance.now() / 1000;
  }

  /** After each step: takes its events. */
  after({ step }: Pick<StepResult, "step">): void {
    if (!this.#on) return;
    const { profile, lastSeconds } = this.#run.mesh.engine.stats();
    this.#steps.push({ step, began: this.#began, seconds: lastSeconds, events: profile });
  }

  /** Writes the trace and shows the table. @throws {FileError} where it cannot be written. */
  async write(): Promise<void> {
    const { mesh, step, log, emit } = this.#run;
    if (this.#steps.length === 0) return;
    const file = this.#file;
    await writeTextAtomically(file, chromeTrace(mesh.name, step.plan.devices, this.#steps));
    const ops = timeByOp(mesh.devices, this.#steps);
    const steps = this.#steps.map((s) => s.step);
    emit({ type: "profile", path: file, steps, ops });
    log.note(`profile of steps ${steps[0]} to ${steps.at(-1)}, all devices together; open ${file} in ui.perfetto.dev:`);
    log.note(opTable(ops));
  }
}
