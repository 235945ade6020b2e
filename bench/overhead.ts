// What JavaScript costs a step: wall time of `await step` less the run's time by the device's own clock.
import { compile, Mesh, nn, type Tensor, trainStep } from "../lib/index.ts";
import { timing } from "./measure.ts";
import { batchOf, stepOptions, workloads } from "./models.ts";
import { digits, type Row, type Table } from "./report.ts";

async function measure(name: string, steps: number, mesh: Mesh, run: () => Promise<unknown>): Promise<Row> {
  const [walls, overheads]: [number[], number[]] = [[], []];
  for (let i = 0; i < steps / 15; i++) await run();
  const counted = (): number =>
    mesh.engine.stats().devices.reduce((n, d) => n + Object.values(d.instructions).reduce((a, b) => a + b, 0), 0);
  const before = counted();
  for (let i = 0; i < steps; i++) {
    const began = performance.now();
    await run();
    const wall = (performance.now() - began) / 1000;
    walls.push(wall);
    overheads.push(wall - mesh.engine.stats().lastSeconds);
  }
  const instructions = Math.round((counted() - before) / steps);
  const overhead = timing(overheads);
  const sorted = [...overheads].sort((a, b) => a - b);
  return {
    step: name,
    steps,
    instructions,
    "wall us": digits(timing(walls).median * 1e6),
    "overhead us": digits(overhead.median * 1e6),
    "least us": digits(overhead.least * 1e6),
    "90 % us": digits(sorted[Math.floor(steps * 0.9)]! * 1e6),
  };
}

/** A thousand tiny matrix products that nothing can fuse, and the demo's training step. */
export async function benchOverhead(): Promise<{ table: Table; microseconds: number }> {
  const rows: Row[] = [];
  {
    await using mesh = await Mesh.open({ device: "cpu", threads: 1 });
    using f = compile(mesh, (x: Tensor, w: Tensor) => {
      let y = x;
      for (let i = 0; i < 1000; i++) y = y.matmul(w);
      return y;
    });
    const x = mesh.ones([4, 4]);
    const w = mesh.tensor([
      [0, 1, 0, 0],
      [0, 0, 1, 0],
      [0, 0, 0, 1],
      [1, 0, 0, 0],
    ]);
    const placed = mesh.tensor(await x.array());
    rows.push(await measure("1000 products of [4, 4]", 300, mesh, () => f.data(placed, w)));
  }
  {
    await using mesh = await Mesh.open({ device: "cpu" });
    const model = new nn.GPT2(workloads.demo.config);
    using step = await trainStep(mesh, model, stepOptions(model, workloads.demo));
    const batch = batchOf(workloads.demo);
    rows.push(await measure("training step of the demo", 60, mesh, () => step.run(batch)));
  }
  return {
    table: {
      title: "JavaScript's share of a step",
      note: "Medians: wall time of the awaited call less the run's time by the device's clock (thread hand-over included).",
      rows,
    },
    microseconds: Number(rows[0]!["overhead us"]),
  };
}
