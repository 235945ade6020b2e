// Run as a process of its own by reads.test.ts, with the library that logs reads: a checkpoint loaded under many
// layouts.
import path from "node:path";
import { loadCheckpoint } from "../../lib/checkpoint/load.ts";
import { saveCheckpoint } from "../../lib/checkpoint/save.ts";
import { type CheckpointState, stateOf } from "../../lib/checkpoint/state.ts";
import type { PartitionSpec } from "../../lib/ir/spec.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";

type Axes = Readonly<Record<string, number>>;

/** A layout: axes, and how two matrices, their optimizer state and a vector lie on them. */
interface Layout {
  readonly axes: Axes;
  readonly specs: readonly PartitionSpec[];
}

const shapes = [[37, 50], [50, 24], [37, 50], [24]] as const;
const names = ["up", "down", "optimizer.m.up", "bias"] as const;

const [folder, text] = process.argv.slice(2);
const [from, ...to]: Layout[] = JSON.parse(text!);

function stateOn(mesh: Mesh<string>, specs: Layout["specs"], first: number): CheckpointState {
  const tensors = names.map((name, t) => {
    const [shape, spec] = [shapes[t]!, specs[t]!];
    const count = shape.reduce((a: number, b) => a * b, 1);
    const values = Float32Array.from({ length: count }, (_, i) => first * (i + t));
    return [name, mesh.fromData(values, shape, { spec })] as const;
  });
  const state = stateOf(mesh, Object.fromEntries(tensors), { step: 1 });
  const roles = state.tensors.map(
    (tensor) => ({ ...tensor, role: tensor.name.includes("optimizer") ? "state" : "parameter" }) as const,
  );
  return { ...state, tensors: roles };
}

{
  await using mesh = await Mesh.open<string>({ device: "cpu", axes: from!.axes, threads: 1 });
  await saveCheckpoint(folder!, stateOn(mesh, from!.specs, 1));
}
for (const [i, { axes, specs }] of to.entries()) {
  await using mesh = await Mesh.open<string>({ device: "cpu", axes, threads: 1 });
  for (const only of [undefined, "parameter"] as const) {
    const state = stateOn(mesh, specs, 0);
    process.env.MESHWORK_READ_LOG = path.join(folder!, `reads-${i}-${only ?? "all"}`);
    const { bytesRead } = await loadCheckpoint(folder!, state, { only });
    delete process.env.MESHWORK_READ_LOG;
    const right = state.tensors.map(({ id, role }, t) => {
      const values = mesh.store.read(id);
      const loaded = only === undefined || role === only;
      return Array.from(values).every((v, e) => v === (loaded ? e + t : 0));
    });
    process.stdout.write(`${JSON.stringify({ bytesRead, right })}\n`);
  }
}
