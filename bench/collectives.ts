// In-process collectives over virtual ranks, with nccl-tests' columns; the results are checked.
import { type CollectiveRequest, LoadedCollective } from "../lib/compile/collective.ts";
import { type DType, dtypeSize, newStorage } from "../lib/core/dtype.ts";
import { Mesh } from "../lib/index.ts";
import { repeat } from "./measure.ts";
import { digits, type Row, type Table } from "./report.ts";

type Op = CollectiveRequest["op"];

/** Traffic of a link for each byte of size, as nccl-tests derives it (doc/PERFORMANCE.md there). */
function busFactor(op: Op, ranks: number): number {
  if (op === "all_reduce") return (2 * (ranks - 1)) / ranks;
  return op === "broadcast" ? 1 : (ranks - 1) / ranks;
}

/** `count` elements are those of the whole tensor: the larger of what a rank brings and gets. */
function requestOf(op: Op, ranks: number, count: number, dtype: DType, times: number): CollectiveRequest {
  const part = count / ranks;
  const counts = new Array<number>(ranks).fill(part);
  const input = op === "all_gather" ? part : count;
  const output = op === "reduce_scatter" ? part : count;
  const parts = Array.from({ length: ranks }, () => ({ input, output, counts, joinCounts: counts }));
  return { op, axes: ["r"], dtype, kind: "sum", root: 0, times, parts };
}

/** Small whole numbers, so that sums are exact in every order. */
function brought(rank: number, i: number): number {
  return (rank * 7 + i * 3) % 11;
}

function expected(op: Op, ranks: number, part: number, rank: number, i: number): number {
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

async function measure(mesh: Mesh, op: Op, bytes: number, dtype: DType): Promise<Row> {
  const ranks = mesh.devices;
  const count = bytes / dtypeSize(dtype);
  const times = Math.max(4, Math.min(200, Math.round(2 ** 24 / bytes)));
  const request = requestOf(op, ranks, count, dtype, times);
  using loaded = new LoadedCollective(mesh.engine, mesh.layout, request);
  for (let rank = 0; rank < ranks; rank++) {
    const values = newStorage(dtype, request.parts[rank]!.input);
    for (let i = 0; i < values.length; i++) values[i] = brought(rank, i);
    await loaded.write(rank, values);
  }
  const { median, least } = await repeat(9, async () => {
    await loaded.run();
    return mesh.engine.stats().lastSeconds / times;
  });
  let wrong = 0;
  for (let rank = 0; rank < ranks; rank++) {
    const got = await loaded.read(rank);
    for (let i = 0; i < got.length; i++) if (got[i] !== expected(op, ranks, count / ranks, rank, i)) wrong++;
  }
  const algbw = bytes / median / 1e9;
  return {
    op,
    ranks,
    "size B": bytes,
    count,
    type: dtype,
    "time us": digits(median * 1e6),
    "least us": digits(least * 1e6),
    "algbw GB/s": digits(algbw),
    "busbw GB/s": digits(algbw * busFactor(op, ranks)),
    wrong,
  };
}

/** Every collective over 2 and 4 virtual ranks, from 4 KiB to 16 MiB. */
export async function benchCollectives(): Promise<Table> {
  const rows: Row[] = [];
  for (const ranks of [2, 4]) {
    await using mesh = await Mesh.open({ device: "cpu", axes: { r: ranks } });
    for (const op of ["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast"] as const) {
      for (const bytes of [4096, 65_536, 1_048_576, 16_777_216]) rows.push(await measure(mesh, op, bytes, "f32"));
    }
  }
  return {
    title: "Collectives",
    note: "In one process, several in a row in one program; time is the run's by the device's clock, divided. No copies to JavaScript.",
    rows,
  };
}
