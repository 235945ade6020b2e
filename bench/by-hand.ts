// Memory-bound work in turns with the same written by hand (bench/native/probe.cc): an elementwise chain, an
// all_reduce.
import { type Buffer, type Kernel, Mesh } from "../lib/index.ts";
import { elementwiseAttributes } from "../lib/ops/expression.ts";
import type { Figures, PartResult } from "./aims.ts";
import { plainWords } from "./kernel-cases.ts";
import { inTurns, median, ratio } from "./measure.ts";
import type { Helper, NativeProgram } from "./native.ts";
import { digits, type Row, type Table } from "./report.ts";
import { allThreads } from "./steps.ts";

/** The kernel of relu((x a + b) c), several in a row. */
function loadChain(x: Buffer, y: Buffer, shape: readonly number[], times: number): Kernel {
  const step = (op: string, inputs: readonly number[]) => ({ op, dtype: "f32" as const, inputs, attrs: {} });
  const constant = (value: number) => ({ ...step("constant", []), attrs: { value } });
  const steps = [
    constant(1.5),
    step("mul", [0, 1]),
    constant(0.25),
    step("add", [2, 3]),
    constant(0.75),
    step("mul", [4, 5]),
    constant(0),
    step("max", [6, 7]),
  ];
  const [length, ...words] = elementwiseAttributes(["f32"], steps, [8], () => -1);
  return x.device.kernel("elementwise", {
    inputs: [{ buffer: x, shape }],
    outputs: [{ buffer: y, shape }],
    attributes: { count: Number(length) },
    more: plainWords(words),
    times,
  });
}

/** relu((x * a + b) * c) of 16 M floats in turns with the same loop written by hand. */
async function chainBesideLoop(probe: NativeProgram): Promise<{ table: Table; figures: Figures }> {
  const [n, inRow] = [1 << 24, 5];
  const rows: Row[] = [];
  let worst = Number.POSITIVE_INFINITY;
  for (const threads of [...new Set([1, allThreads])]) {
    await using mesh = await Mesh.open({ device: "cpu", threads });
    const [x, y] = [mesh.device(0).allocate("f32", n), mesh.device(0).allocate("f32", n)];
    await x.write(Float32Array.from({ length: n }, (_, i) => ((i * 37) % 101) / 50 - 1));
    using chain = loadChain(x, y, [n], inRow);
    const own = async (): Promise<number> => (await chain.run()) / inRow;
    let plain: number[] = [];
    const hand = async (): Promise<number> => {
      const { plain: stored, streamed } = await probe.ask(`chain ${threads} ${n}`);
      plain = [...plain, stored!];
      return Math.min(stored!, streamed!);
    };
    const times = await inTurns(9, { own, hand });
    const share = ratio(times.hand!, times.own!);
    worst = Math.min(worst, share);
    const line = (by: string, seconds: readonly number[]): Row => {
      return {
        threads,
        by,
        "median us": digits(median(seconds) * 1e6),
        "GB/s": digits((8 * n) / median(seconds) / 1e9),
      };
    };
    rows.push(line("meshwork, one fused kernel", times.own!));
    rows.push(line("written by hand, the faster of plain and streaming stores", times.hand!));
    rows.push(line("written by hand, plain stores", plain));
  }
  return {
    table: {
      title: "relu((x a + b) c) of 16 M floats beside a loop written by hand",
      note: "Medians of 9, in turns. GB/s: 8 bytes an element.",
      rows,
    },
    figures: { chain: worst },
  };
}

/** all_reduce of 64 MiB over two ranks in turns with two threads that do nothing else. */
async function allReduceBesideSum(probe: NativeProgram): Promise<{ table: Table; figures: Figures }> {
  const [bytes, times] = [1 << 26, 4];
  const count = bytes / 4;
  await using mesh = await Mesh.open({ device: "cpu", axes: { r: 2 }, threads: 1 });
  const devices = [mesh.device(0), mesh.device(1)];
  const inputs = devices.map((device) => device.allocate("f32", count));
  const outputs = devices.map((device) => device.allocate("f32", count));
  for (const [rank, input] of inputs.entries()) await input.write(new Float32Array(count).fill(rank + 1));
  using loaded = mesh.group("r").collective("all_reduce", { inputs, outputs, times });
  const { own, hand } = await inTurns(11, {
    own: async () => (await loaded.run()) / times,
    hand: async () => (await probe.ask(`sum 2 ${count}`)).seconds!,
  });
  for (const buffer of [...inputs, ...outputs]) buffer[Symbol.dispose]();
  const line = (by: string, seconds: readonly number[]): Row => {
    return { by, "time us": digits(median(seconds) * 1e6), "GB/s": digits(bytes / median(seconds) / 1e9) };
  };
  return {
    table: {
      title:
        "all_reduce of 64 MiB f32 over 2 ranks, beside two threads that add two arrays and write the sum to two more",
      note: "Medians of 11, in turns. GB/s: size / time.",
      rows: [line("all_reduce", own!), line("written by hand, streaming stores", hand!)],
    },
    figures: { allReduce: bytes / median(own!) / 1e9, allReduceShare: ratio(hand!, own!) },
  };
}

/** Both. */
export async function benchByHand(probe: Helper): Promise<PartResult> {
  if (typeof probe === "string")
    return { tables: [], figures: { chain: probe, allReduce: probe, allReduceShare: probe } };
  const chain = await chainBesideLoop(probe);
  const sum = await allReduceBesideSum(probe);
  return { tables: [chain.table, sum.table], figures: { ...chain.figures, ...sum.figures } };
}
