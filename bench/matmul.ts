// Matrix products beside the processor's peak rates, oneDNN and OpenBLAS, in turns.
import { setTimeout } from "node:timers/promises";
import { compile, Mesh, type Tensor } from "../lib/index.ts";
import type { AimName, Figures, PartResult } from "./aims.ts";
import { inTurns, median, ratio } from "./measure.ts";
import { type Helper, NativeProgram, startNative } from "./native.ts";
import { digits, type Row } from "./report.ts";
import { allThreads } from "./steps.ts";

type Precision = "f32" | "bf16";

interface Product {
  readonly m: number;
  readonly n: number;
  readonly k: number;
}

const products: readonly Product[] = [
  { m: 1024, n: 1024, k: 1024 },
  { m: 4096, n: 3072, k: 768 },
];
const rounds = 5;
/** The libraries' threads go on polling for so long, in ms, on cores that ours would want (OpenBLAS: some 80 ms). */
const pollingMs = 150;

/** Programs that multiply, or why there are none. */
interface Yardsticks {
  readonly probe: NativeProgram;
  readonly oneDnn: Helper;
  readonly openBlas: Helper;
}

function fill(mesh: Mesh, rows: number, columns: number): Tensor {
  const values = Float32Array.from({ length: rows * columns }, (_, i) => ((i * 37) % 101) / 50 - 1);
  return mesh.fromData(values, [rows, columns]);
}

/** Rates in GFLOP/s of all who take part, in turns. */
async function rates(
  { m, n, k }: Product,
  precision: Precision,
  threads: number,
  { probe, oneDnn, openBlas }: Yardsticks,
): Promise<Record<string, number[]>> {
  await using mesh = await Mesh.open({ device: "cpu", threads });
  using f = compile(mesh, (x: Tensor, w: Tensor) => x.matmul(w), { precision });
  const [x, w] = [fill(mesh, m, k), fill(mesh, k, n)];
  mesh.engine.profile(true);
  const own = async (): Promise<number> => {
    await setTimeout(pollingMs);
    let seconds = 0;
    for (let i = 0; i < 2; i++) {
      await f.data(x, w);
      const product = mesh.engine.stats().profile.filter(({ op }) => op === "matmul");
      if (product.length !== 1) throw new Error(`${product.length} matmul kernels ran for one product`);
      const took = product[0]!.end - product[0]!.begin;
      seconds = i === 0 ? took : Math.min(seconds, took);
    }
    return (2 * m * n * k) / seconds / 1e9;
  };
  const unit = async (name: string): Promise<number> => (await probe.ask(`${name} ${threads}`)).gflops!;
  const library = (helper: NativeProgram) => async (): Promise<number> =>
    (await helper.ask(`${m} ${n} ${k} ${threads} ${precision}`)).gflops!;
  const ceiling = precision === "f32" ? "fma" : (await unit("amx")) > 0 ? "amx" : "pairs";
  return await inTurns(rounds, {
    own,
    [`ceiling (${ceiling})`]: () => unit(ceiling),
    ...(oneDnn instanceof NativeProgram ? { oneDNN: library(oneDnn) } : {}),
    ...(openBlas instanceof NativeProgram && precision === "f32" ? { OpenBLAS: library(openBlas) } : {}),
  });
}

/**
 * Two shapes, two precisions, one thread and all. An aim's figure is the worst of its shapes and numbers of threads.
 */
export async function benchMatmul(probe: Helper): Promise<PartResult> {
  if (typeof probe === "string") {
    return {
      tables: [],
      figures: { matmulF32: probe, matmulBf16: probe, matmulOneDnn: probe, matmulF32OneDnn: probe },
    };
  }
  const [oneDnn, openBlas] = [startNative("onednn", ["-ldnnl", "-lgomp"]), startNative("openblas", ["-lopenblas"])];
  const rows: Row[] = [];
  const worst: Partial<Record<AimName, number>> = {};
  const take = (name: AimName, value: number): void => {
    worst[name] = Math.min(worst[name] ?? Number.POSITIVE_INFINITY, value);
  };
  for (const precision of ["f32", "bf16"] as const) {
    for (const product of products) {
      for (const threads of [...new Set([1, allThreads])]) {
        const measured = await rates(product, precision, threads, { probe, oneDnn, openBlas });
        const { own, ...others } = measured;
        const row: Record<string, string | number> = {
          product: `${precision} [${product.m}, ${product.k}] x [${product.k}, ${product.n}]`,
          threads,
          "GFLOP/s": digits(median(own!)),
        };
        const shares: number[] = [];
        for (const [name, values] of Object.entries(others)) {
          const share = ratio(own!, values);
          row[name] = `${digits(median(values))} (${digits(share)} x)`;
          if (name.startsWith("ceiling")) take(precision === "f32" ? "matmulF32" : "matmulBf16", share);
          else if (median(values) > 0) shares.push(share);
        }
        if (shares.length > 0) take(precision === "f32" ? "matmulF32OneDnn" : "matmulOneDnn", Math.min(...shares));
        rows.push(row);
      }
    }
  }
  const missing = [oneDnn, openBlas].filter((helper) => typeof helper === "string");
  for (const helper of [oneDnn, openBlas]) if (helper instanceof NativeProgram) helper[Symbol.dispose]();
  const figures: Figures = { ...worst };
  if (typeof oneDnn === "string") figures.matmulOneDnn = oneDnn;
  if (missing.length === 2) figures.matmulF32OneDnn = missing.join("; ");
  const table = {
    title: "Matrix products beside peak rates and libraries",
    note:
      `Medians of ${rounds} rounds, in turns; in brackets: our rate over theirs. GFLOP/s of our kernel by the device's clock, the better of two.` +
      missing.map((reason) => ` Not here: ${reason}.`).join(""),
    rows,
  };
  return { tables: [table], figures };
}
