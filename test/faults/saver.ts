// Run as a process of its own by faults.test.ts, with the library that injects faults: saves checkpoints, step after
// step.
import { readdirSync } from "node:fs";
import path from "node:path";
import { Checkpointer } from "../../lib/checkpoint/checkpointer.ts";
import { listFolder } from "../../lib/checkpoint/folder.ts";
import { loadCheckpoint, openCheckpoint } from "../../lib/checkpoint/load.ts";
import { type CheckpointState, stateOf } from "../../lib/checkpoint/state.ts";
import { MeshworkError } from "../../lib/core/errors.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";

const size = 5000;
const [mode, folder, ...rest] = process.argv.slice(2);
await using mesh = await Mesh.open({ device: "cpu", axes: { tp: 2 }, threads: 1 });
const w = mesh.fromData(new Float32Array(size), [size], { spec: ["tp"] });
const m = mesh.fromData(new Float32Array(3), [3]);

/** The state of a step: every element tells it. */
function stateAt(step: number): CheckpointState {
  const state = stateOf(mesh, { w, m }, { step });
  state.tensors.forEach(({ id }, t) => {
    mesh.store.write(
      id,
      Float32Array.from({ length: t === 0 ? size : 3 }, (_, i) => step * 100 + (i % 97) + t),
    );
  });
  return state;
}

/** The step of the newest good checkpoint, held to the values it must have; 0 where there is none. */
async function check(where: string): Promise<number> {
  const state = stateAt(0);
  // What is there under a checkpoint's name is whole: none is passed over.
  const onWarning = (text: string): never => {
    throw new Error(text);
  };
  const { step } = await loadCheckpoint(where, state, { onWarning });
  const { checkpoints } = await listFolder(where);
  for (const { name } of checkpoints) (await openCheckpoint(path.join(where, name)))[Symbol.dispose]();
  const read = await Promise.all([w.data(), m.data()]);
  read.forEach((values, t) => {
    values.forEach((value, i) => {
      if (value !== step * 100 + (i % 97) + t) throw new Error(`step ${step}: element ${i} is ${value}`);
    });
  });
  return step;
}

/** One line a report. */
function report(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

if (mode === "save") {
  // Steps a to b, each reported when it is on the disk; so many are kept.
  await using checkpointer = new Checkpointer(folder!, { keep: Number(rest[2] ?? 2) });
  for (let step = Number(rest[0]); step <= Number(rest[1]); step++) {
    await (await checkpointer.save(stateAt(step))).saved;
    report(step);
  }
} else if (mode === "check") {
  report(await check(folder!));
} else {
  // For each fault: a good checkpoint, a save with the fault, then one without.
  for (const fault of rest) {
    const own = path.join(folder!, fault.replace(/\W/g, "-"));
    const checkpointer = new Checkpointer(own, { keep: 1, onError: () => undefined });
    const save = async (step: number): Promise<void> => void (await (await checkpointer.save(stateAt(step))).saved);
    await save(1);
    process.env.MESHWORK_FAULT = fault;
    let error = "";
    try {
      await save(2);
    } catch (cause) {
      error = cause instanceof MeshworkError ? `${cause.code} ${cause.message}` : `?? ${String(cause)}`;
    }
    await checkpointer.flush();
    delete process.env.MESHWORK_FAULT;
    const after = await check(own);
    await save(3);
    report({ fault, error, after, next: await check(own), left: readdirSync(own).sort() });
    await checkpointer[Symbol.asyncDispose]();
  }
}
