// Kernels of one device: time, arithmetic and memory traffic, from the device's own clock.
import { attention, compile, grad, layerNorm, Mesh, rmsNorm, type Tensor } from "../lib/index.ts";
import { repeat } from "./measure.ts";
import { digits, type Row, type Table } from "./report.ts";

interface OpCase {
  readonly name: string;
  readonly shapes: readonly (readonly number[])[];
  readonly run: (...args: Tensor[]) => Tensor;
  /** Kernels whose time counts. */
  readonly kernels: readonly string[];
  readonly flops?: number;
  /** Bytes read and written at least. */
  readonly bytes?: number;
  readonly precision?: "f32" | "bf16";
}

function matmul(m: number, k: number, n: number, precision: "f32" | "bf16" = "f32"): OpCase {
  const name = `matmul ${precision} [${m}, ${k}] x [${k}, ${n}]`;
  return {
    name,
    shapes: [
      [m, k],
      [k, n],
    ],
    run: (a, b) => a!.matmul(b!),
    kernels: ["matmul"],
    flops: 2 * m * k * n,
    precision,
  };
}

function chain(n: number): OpCase {
  return {
    name: `elementwise: gelu(x y + 1) y, ${n} elements, fused`,
    shapes: [[n], [n]],
    run: (x, y) => x!.mul(y!).add(1).gelu().mul(y!),
    kernels: ["elementwise"],
    bytes: 3 * 4 * n,
  };
}

function attend(b: number, t: number, h: number, d: number, backward: boolean): OpCase {
  const forward = 2 * b * h * t * t * d; // two products, half of each under the causal mask
  const apply = (q: Tensor, k: Tensor, v: Tensor): Tensor => attention(q, k, v);
  return {
    name: `attention${backward ? ", gradient" : ""}, causal, ${b} x ${t} tokens, ${h} heads of ${d}`,
    shapes: [
      [b, t, h, 1, d],
      [b, t, h, d],
      [b, t, h, d],
    ],
    run: (q, k, v) => {
      if (!backward) return apply(q!, k!, v!);
      const [dq, dk, dv] = grad((...x) => apply(x[0], x[1], x[2]).sum(), [q!, k!, v!]);
      return dq.sum().add(dk.sum()).add(dv.sum());
    },
    kernels: [backward ? "attention_grad" : "attention"],
    flops: backward ? 2.5 * forward : forward, // five products, the scores made again
  };
}

function norms(rows: number, width: number): OpCase[] {
  const bytes = 2 * 4 * rows * width;
  const shapes = [[rows, width], [width]];
  return [
    {
      name: `layer_norm [${rows}, ${width}]`,
      shapes,
      run: (x, w) => layerNorm(x!, w!, w!),
      kernels: ["layer_norm"],
      bytes,
    },
    { name: `rms_norm [${rows}, ${width}]`, shapes, run: (x, w) => rmsNorm(x!, w!), kernels: ["rms_norm"], bytes },
    {
      name: `softmax [${rows}, ${width}]`,
      shapes: [[rows, width]],
      run: (x) => x!.softmax(),
      kernels: ["softmax"],
      bytes,
    },
  ];
}

const cases: readonly OpCase[] = [
  matmul(512, 512, 512),
  matmul(1024, 1024, 1024),
  matmul(2048, 384, 1536),
  matmul(512, 768, 50257),
  matmul(1024, 1024, 1024, "bf16"),
  chain(1 << 16),
  chain(1 << 22),
  attend(8, 256, 6, 64, false),
  attend(8, 256, 6, 64, true),
  attend(1, 1024, 12, 64, false),
  attend(1, 1024, 12, 64, true),
  ...norms(2048, 768),
];

async function measureOp(mesh: Mesh, op: OpCase): Promise<Row> {
  using f = compile(mesh, op.run, { precision: op.precision ?? "f32" });
  const args = op.shapes.map((shape) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return mesh.fromData(
      Float32Array.from({ length: size }, (_, i) => ((i * 37) % 101) / 50 - 1),
      shape,
    );
  });
  const kernels = new Set(op.kernels);
  const { median, least } = await repeat(15, async () => {
    await f.data(...args);
    const events = mesh.engine.stats().profile.filter((event) => kernels.has(event.op));
    if (events.length === 0) throw new Error(`${op.name}: no kernel ${op.kernels.join(", ")} ran`);
    return events.reduce((sum, { begin, end }) => sum + end - begin, 0);
  });
  return {
    op: op.name,
    "median us": digits(median * 1e6),
    "least us": digits(least * 1e6),
    ...(op.flops === undefined ? {} : { "GFLOP/s": digits(op.flops / least / 1e9) }),
    ...(op.bytes === undefined ? {} : { "GB/s": digits(op.bytes / least / 1e9) }),
  };
}

/** Measures every op on one CPU device with all cores. */
export async function benchOps(): Promise<Table> {
  await using mesh = await Mesh.open({ device: "cpu" });
  mesh.engine.profile(true);
  const rows: Row[] = [];
  for (const op of cases) rows.push(await measureOp(mesh, op));
  return {
    title: "Ops on one device",
    note: "Kernel time by the device's own clock, all cores. Rates are of the least time; bytes are those that must move.",
    rows,
  };
}
