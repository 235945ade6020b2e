// Collectives on buffers of the devices, with nccl-tests' columns; the results are checked.
import { type DType, dtypeSize, fromStorage, toStorage } from "../lib/core/dtype.ts";
import { type Buffer, type CollectiveName, Mesh } from "../lib/index.ts";
import { chosen, everything, type Selection } from "./flags.ts";
import { repeat } from "./measure.ts";
import { digits, type Row, type Table } from "./report.ts";

const all: readonly CollectiveName[] = ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"];

/** Traffic of a link for each byte of size, as nccl-tests derives it (doc/PERFORMANCE.md there). */
function busFactor(op: CollectiveName, ranks: number): number {
  if (op === "all_reduce") return (2 * (ranks - 1)) / ranks;
  return op === "broadcast" ? 1 : (ranks - 1) / ranks;
}

/** Small whole numbers, so that sums are exact in every order and type. */
function brought(rank: number, i: number): number {
  return (rank * 7 + i * 3) % 11;
}

function expected(op: CollectiveName, ranks: number, part: number, rank: number, i: number): number {
  switch (op) {
    case "all_reduce":
      return sumAt(ranks, i);
    case "reduce_scatter":
      return sumAt(ranks, rank * part + i);
    case "all_gather":
      return brought(Math.floor(i / part), i % part);
    case "all_to_all":
      return brought(Math.floor(i / part), rank * part + (i % part));
    case "broadcast":
      return brought(0, i);
  }
}

function sumAt(ranks: number, i: number): number {
  let sum = 0;
  for (let r = 0; r < ranks; r++) sum += brought(r, i);
  return sum;
}

async function wrongElements(outputs: readonly Buffer[], op: CollectiveName, part: number): Promise<number> {
  let wrong = 0;
  for (const [rank, output] of outputs.entries()) {
    const got = fromStorage(output.dtype, await output.read());
    for (let i = 0; i < got.length; i++) if (got[i] !== expected(op, outputs.length, part, rank, i)) wrong++;
  }
  return wrong;
}

/** `bytes` are those of the whole tensor: the larger of what a rank brings and gets. */
async function measure(mesh: Mesh, op: CollectiveName, bytes: number, dtype: DType): Promise<Row> {
  const ranks = mesh.devices;
  const part = Math.max(1, Math.floor(bytes / dtypeSize(dtype) / ranks));
  const [count, size] = [part * ranks, part * ranks * dtypeSize(dtype)];
  const times = Math.max(4, Math.min(200, Math.round(2 ** 24 / size)));
  const device = Array.from({ length: ranks }, (_, rank) => mesh.device(rank));
  const inputs = device.map((d) => d.allocate(dtype, op === "all_gather" ? part : count));
  const outputs = device.map((d) => d.allocate(dtype, op === "reduce_scatter" ? part : count));
  for (const [rank, input] of inputs.entries()) {
    const values = Array.from({ length: input.length }, (_, i) => brought(rank, i));
    await input.write(toStorage(dtype, values));
  }
  using loaded = mesh.group("r").collective(op, { inputs, outputs, times });
  const { median, least } = await repeat(9, async () => (await loaded.run()) / times);
  const wrong = await wrongElements(outputs, op, part);
  for (const buffer of [...inputs, ...outputs]) buffer[Symbol.dispose]();
  const algbw = size / median / 1e9;
  return {
    op,
    ranks,
    "size B": size,
    count,
    type: dtype,
    "time us": digits(median * 1e6),
    "least us": digits(least * 1e6),
    "algbw GB/s": digits(algbw),
    "busbw GB/s": digits(algbw * busFactor(op, ranks)),
    wrong,
  };
}

/** By default every collective over 2 and 4 ranks, from 4 KiB to 16 MiB, in f32. */
export async function benchCollectives(asked: Selection = everything): Promise<Table> {
  const { device, types = ["f32"], sizes = [4096, 65_536, 1_048_576, 16_777_216], ranks = [2, 4] } = asked;
  const ops = chosen(all, asked.ops, "collective");
  const rows: Row[] = [];
  for (const r of ranks) {
    await using mesh = await Mesh.open({ device, axes: { r } });
    for (const op of ops) {
      for (const type of types) for (const bytes of sizes) rows.push(await measure(mesh, op, bytes, type));
    }
  }
  return {
    title: "Collectives",
    note: "In one process, several in a row in one program; time is the run's by the device's clock, divided. No copies to JavaScript.",
    rows,
  };
}
