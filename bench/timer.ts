// Whether JavaScript stays responsive while a training runs in its process: how late a 10 ms timer fires.
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { runCommand } from "../lib/cli/verbs.ts";
import { digits, type Row, type Table } from "./report.ts";

const period = 10;
const late = 20;

/** The timer during one part of a run; times in milliseconds. */
export interface Lateness {
  /** `compile` up to the first step, `train` up to the last, then `finish`: evaluation, saving, a sample. */
  readonly phase: string;
  firings: number;
  /** Firings that came 20 ms late or more. */
  late: number;
  latest: number;
  /** The longest the event loop did not come round: the longest JavaScript task, and what the system took away. */
  longest: number;
}

/** Trains the demo by the command in this process for so many steps, while a timer fires every 10 ms. */
export async function timerDuringTraining(steps: number, flags: readonly string[] = []): Promise<Lateness[]> {
  const phases: Lateness[] = [];
  const delay = monitorEventLoopDelay({ resolution: 1 });
  const enter = (phase: string): void => {
    const before = phases.at(-1);
    if (before) before.longest = delay.max / 1e6;
    delay.reset();
    phases.push({ phase, firings: 0, late: 0, latest: 0, longest: 0 });
  };
  let last = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    const lateness = now - last - period;
    last = now;
    const phase = phases.at(-1)!;
    phase.firings++;
    if (lateness >= late) phase.late++;
    phase.latest = Math.max(phase.latest, lateness);
  }, period);
  const out = await mkdtemp(path.join(os.tmpdir(), "meshwork-timer-"));
  delay.enable();
  enter("compile");
  const write = (text: string): void => {
    for (const line of text.split("\n")) {
      if (!line.startsWith('{"type":"step"')) continue;
      const { step }: { step: number } = JSON.parse(line);
      if (step === 1) enter("train");
      if (step === steps) enter("finish");
    }
  };
  let errors = "";
  try {
    const args = ["train", "--steps", String(steps), "--mesh", "pp=2,tp=2", "--device", "cpu", "--out", out];
    const io = { stdout: { write }, stderr: { write: (text: string) => (errors += text) } };
    const signal = new AbortController().signal;
    const code = await runCommand([...args, "--log", "json", ...flags], { ...io, signal });
    if (code !== 0) throw new Error(errors);
  } finally {
    phases.at(-1)!.longest = delay.max / 1e6;
    delay.disable();
    clearInterval(timer);
    await rm(out, { recursive: true });
  }
  return phases;
}

/** The demo over pp=2,tp=2, with an evaluation every 20 steps. */
export async function benchTimer(): Promise<{ table: Table; percent: number }> {
  const phases = await timerDuringTraining(60, ["--eval-every", "20"]);
  const rows = phases.map(
    ({ phase, firings, late, latest, longest }): Row => ({
      phase,
      firings,
      late,
      "late %": digits((100 * late) / Math.max(1, firings)),
      "latest ms": digits(latest),
      "longest task ms": digits(longest),
    }),
  );
  return {
    table: {
      title: "A 10 ms timer while the demo trains",
      note: "Firings 20 ms late or more; the longest the event loop took to come round (a busy system adds to it).",
      rows,
    },
    percent: Number(rows.find((row) => row.phase === "train")?.["late %"]),
  };
}
