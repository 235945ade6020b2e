// Checkpoints: how long a step waits for an asynchronous save, and throughput of writing, reading and SHA-256.
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Checkpointer } from "../lib/checkpoint/checkpointer.ts";
import { loadCheckpoint } from "../lib/checkpoint/load.ts";
import { planShards } from "../lib/checkpoint/shards.ts";
import { stateOf } from "../lib/checkpoint/state.ts";
import { HostMemory } from "../lib/runtime/host-memory.ts";
import { Mesh } from "../lib/tensor/mesh.ts";
import { median } from "./measure.ts";
import { digits, type Row, type Table } from "./report.ts";

const mebibytes = 256;
const trials = 5;

/** What one trial took: seconds, and seconds of all this process's threads; none where another process did it. */
interface Sample {
  readonly wall: number;
  readonly cpu?: number;
}

const timed = async (run: () => unknown): Promise<Sample> => {
  const [began, used] = [performance.now(), process.cpuUsage()];
  await run();
  const { user, system } = process.cpuUsage(used);
  return { wall: (performance.now() - began) / 1000, cpu: (user + system) / 1e6 };
};

/** State over two devices, saved and loaded again; beside it dd in the same folder. */
export async function benchCheckpoints(): Promise<{ table: Table; ratio: number }> {
  // On the disk of the repository: /tmp may be memory.
  const folder = await mkdtemp(path.join(fileURLToPath(new URL("../node_modules/", import.meta.url)), ".bench-"));
  try {
    await using mesh = await Mesh.open({ device: "cpu", axes: { tp: 2 } });
    const count = (mebibytes << 20) / 4 / 8;
    const values = Float32Array.from({ length: count }, (_, i) => Math.sin(i));
    const tensors = Object.fromEntries(
      Array.from({ length: 8 }, (_, t) => [`w${t}`, mesh.fromData(values, [count], { spec: ["tp"] })]),
    );
    const samples = await measure(mesh, stateOf(mesh, tensors), folder);
    const wall = (what: string): number => median(samples[what]!.map((sample) => sample.wall));
    const rows = Object.entries(samples).map(([what, list]): Row => {
      const cpu = list.flatMap((sample) => sample.cpu ?? []);
      return {
        what,
        "ms, median": digits(1000 * wall(what)),
        "MB/s": digits((mebibytes * 1.048576) / wall(what)),
        "CPU ms": cpu.length === 0 ? "" : digits(1000 * median(cpu)),
      };
    });
    const ratio = digits(wall("a step's wait for a save") / wall("copy of all bytes alone"));
    return {
      table: {
        title: "Checkpoints",
        note:
          `${mebibytes} MiB over two devices on ${os.platform()}, median of ${trials}; CPU ms of all threads. ` +
          "dd writes and reads as much in the same folder.",
        rows,
      },
      ratio,
    };
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function measure(mesh: Mesh<"tp">, state: ReturnType<typeof stateOf>, folder: string) {
  const samples: Record<string, Sample[]> = {};
  const add = (name: string, sample: Sample): void => {
    samples[name] = [...(samples[name] ?? []), sample];
  };
  const plan = planShards(state);
  await using checkpointer = new Checkpointer(path.join(folder, "c"), { keep: 1 });
  await checkpointer.prepare(state);
  using memory = new HostMemory(plan.bytes);
  await memory.touch();
  const bytes = new Uint8Array(mebibytes << 20).fill(7);
  for (let n = 0; n < trials; n++) {
    add("copy of all bytes alone", await timed(() => memory.snapshot(mesh.engine, plan.copies)));
    let stalled = 0;
    const whole = await timed(async () => {
      const pending = await checkpointer.save({ ...state, step: n });
      stalled = pending.stalled;
      await pending.saved;
    });
    add("a step's wait for a save", { wall: stalled });
    add("a whole save, to the disk", whole);
    const file = path.join(folder, "dd");
    const dd = async (...args: string[]): Promise<Sample> => {
      const { wall } = await timed(() => execFileSync("dd", [...args, "bs=1M"], { stdio: "ignore" }));
      return { wall };
    };
    add("dd, written and synced", await dd("if=/dev/zero", `of=${file}`, `count=${mebibytes}`, "conv=fsync"));
    add("a load, verified", await timed(() => checkpointer.load(state)));
    add("a load by way of fresh memory", await timed(() => loadCheckpoint(path.join(folder, "c"), state)));
    add("dd, read (from the page cache, as the load)", await dd(`if=${file}`, "of=/dev/null"));
    add("SHA-256 of one thread, node:crypto", await timed(() => createHash("sha256").update(bytes).digest()));
    const ends = [mebibytes << 20];
    const header = '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}';
    // A file on /dev/shm costs no disk: what is left is SHA-256, CRC-32C and a copy.
    const shard = path.join("/dev/shm", path.basename(folder));
    await rm(shard, { force: true });
    add(
      "one shard to memory: SHA-256, CRC-32C, copy",
      await timed(() => memory.writeShards([{ path: shard, header, offset: 0, ends }])),
    );
    await rm(shard, { force: true });
  }
  return samples;
}
