// Compiling in a worker thread: the same programs as on the calling thread, the same errors, and an event loop that
// goes on.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { compileInWorker } from "../../lib/compile/background.ts";
import { compileStep, functionSource, type StepOptions, type StepSource } from "../../lib/compile/step.ts";
import { AbortedError, MeshworkError, PlanError, ProgramError } from "../../lib/core/errors.ts";
import { workloads } from "../../bench/models.ts";
import { Mesh, nn, optim, planTrainStep } from "../../lib/index.ts";
import type { Graph } from "../../lib/ir/graph.ts";
import { MeshLayout } from "../../lib/ir/mesh.ts";
import { replicated } from "../../lib/ir/spec.ts";
import { forwardOnly, scheduleMaker } from "../../lib/passes/schedules.ts";
import { gradients } from "../../lib/tensor/grad.ts";
import { flatten, type Sym, SymBuilder } from "../../lib/tensor/trace.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** A chain of layers over the stages, with gradients. */
function chain(samples: number, layers: number, width: number, stages: number): Graph {
  const b = new SymBuilder();
  let x = b.one("input", [], { name: "x", dtype: "f32", shape: [samples, width] });
  const weights: Sym[] = [];
  for (let i = 0; i < layers; i++) {
    b.path = `stage${Math.floor((i * stages) / layers)}`;
    weights.push(b.one("parameter", [], { id: `w${i}`, dtype: "f32", shape: [width, width] }));
    x = b.unary("tanh", b.einsum("b i, i j -> b j", x, weights[i]!));
  }
  const loss = b.sum(x);
  const grads = gradients(b, loss, b.constant(1, "f32"), weights);
  return flatten([{ name: "loss", sym: loss }, ...grads.map((sym, i) => ({ name: `g${i}`, sym: sym! }))]);
}

/** Norm over all gradients: every stage takes part. */
function closing(layers: number, width: number): Graph {
  const b = new SymBuilder();
  const cell = (name: string, shape: readonly number[]): Sym =>
    b.one("input", [], { name, dtype: "f32", shape: [...shape] });
  const squares = Array.from({ length: layers }, (_, i) => b.one("square_sum", [cell(`g${i}`, [width, width])]));
  const norm = b.unary("sqrt", b.sum(b.concat(squares, 0)));
  return flatten([
    { name: "norm", sym: norm },
    { name: "loss", sym: b.mul(cell("loss", []), 1) },
  ]);
}

function step(axes: Readonly<Record<string, number>>, changes: Partial<StepOptions> = {}): [StepSource, StepOptions] {
  const [layers, width] = [8, 12];
  const layout = new MeshLayout(axes);
  const stages = layout.size("pp");
  const source: StepSource = {
    inputs: [{ name: "x", dtype: "f32", shape: [width], batch: true }],
    micro: new Map([3, 2].map((n) => [n, chain(n, layers, width, stages)])),
    closing: closing(layers, width),
  };
  const split = { dims: [[], ["tp"]], partial: {} };
  const options: StepOptions = {
    layout,
    batchSize: 8,
    microbatches: 3,
    schedule: scheduleMaker("1f1b")(stages, 3),
    stageOfBlock: new Map([0, 1, 2, 3].map((s) => [`stage${s}`, s])),
    parameterSpecs: new Map(Array.from({ length: layers }, (_, i) => [`w${i}`, i % 2 ? replicated(2) : split])),
    passes: { precision: "f32" },
    ...changes,
  };
  return [source, options];
}

async function failureOf(run: () => unknown): Promise<MeshworkError> {
  try {
    await run();
  } catch (error) {
    assert.ok(error instanceof MeshworkError, String(error));
    return error;
  }
  assert.fail("nothing was thrown");
}

describe("compiling in a worker thread", function () {
  this.timeout(60_000);

  it("gives the programs that the calling thread gives, and everything about them", async () => {
    for (const axes of [{}, { dp: 2 }, { pp: 2 }, { pp: 3, tp: 2 }, { pp: 2, dp: 2, tp: 2 }]) {
      const [source, options] = step(axes);
      assert.deepEqual(await compileInWorker(source, options), compileStep(source, options));
    }
  });

  it("refuses what the calling thread refuses, with the same errors", async () => {
    const unsound = chain(2, 1, 4, 1);
    const broken: Graph = { ...unsound, outputs: [{ name: "loss", value: 999 }] };
    const cases: [StepSource, StepOptions][] = [
      step({ dp: 2 }, { batchSize: 2 }),
      step({ cp: 2 }, { refuseIdle: true }),
      step({ tp: 2 }, { parameterSpecs: new Map() }),
      [
        functionSource(broken),
        { ...step({})[1], batchSize: 0, microbatches: 1, schedule: forwardOnly(1, 1), passes: { precision: "f32" } },
      ],
    ];
    const classes = [PlanError, PlanError, PlanError, ProgramError];
    for (const [i, [source, options]] of cases.entries()) {
      const here = await failureOf(() => compileStep(source, options));
      const there = await failureOf(() => compileInWorker(source, options));
      assert.ok(there instanceof classes[i]!, String(there));
      assert.deepEqual(
        [there.name, there.code, there.message, there.details],
        [here.name, here.code, here.message, here.details],
      );
      assert.equal(String(there.cause), String(here.cause));
    }
  });

  it("shows the same graphs and stages of compiling", async () => {
    const seen = async (run: typeof compileInWorker | typeof compileStep): Promise<unknown> => {
      const graphs: unknown[] = [];
      const stages = new Set<string>();
      const onPass = (name: string, graph: Graph): number => graphs.push([name, graph]);
      const onTime = (stage: string): unknown => stages.add(stage);
      const [source, options] = step({ pp: 2 }, { passes: { precision: "bf16", onPass, onTime } });
      await run(source, options);
      return [graphs, stages];
    };
    assert.deepEqual(await seen(compileInWorker), await seen(compileStep));
    const thrown = new Error("the caller's own");
    const onPass = (): never => {
      throw thrown;
    };
    await assert.rejects(compileInWorker(...step({}, { passes: { precision: "f32", onPass } })), thrown);
  });

  it("is given up when its signal fires; what waits behind it goes on", async () => {
    const aborts = [new AbortController(), new AbortController(), new AbortController()];
    const runs = aborts.map(({ signal }) => compileInWorker(...step({ pp: 2, tp: 2 }), signal));
    aborts[0]!.abort(new Error("enough"));
    aborts[2]!.abort();
    const error = await failureOf(() => runs[0]);
    assert.ok(error instanceof AbortedError && error.cause instanceof Error && error.cause.message === "enough");
    assert.ok((await failureOf(() => runs[2])) instanceof AbortedError);
    assert.deepEqual(await runs[1], compileStep(...step({ pp: 2, tp: 2 })));
  });

  it("leaves the event loop free while GPT-2 is compiled for 8 devices", async () => {
    await using mesh = await Mesh.open({ device: "null", axes: { dp: 2, pp: 2, tp: 2 } });
    const model = new nn.GPT2(workloads.gpt2.config);
    const busy = { longest: 0, last: performance.now() };
    const timer = setInterval(() => {
      const now = performance.now();
      busy.longest = Math.max(busy.longest, now - busy.last);
      busy.last = now;
    }, 1);
    const began = performance.now();
    const { plan } = await planTrainStep(mesh, model, {
      loss: (batch) => model.loss(batch.inputs, batch.targets),
      optimizer: optim.adamw({ learningRate: 1e-3 }),
      batchSize: 16,
      batch: model.batchFields(1024),
    });
    clearInterval(timer);
    const total = performance.now() - began;
    assert.equal(plan.devices.length, 8);
    // Some 20 ms on a machine that does nothing else; a busy one holds every thread up.
    assert.ok(busy.longest < Math.max(50, total / 4), `a task of ${busy.longest} ms in ${total} ms`);
  });

  it("works from compiled JavaScript, and does not keep the process alive", () => {
    const dist = mkdtempSync(path.join(os.tmpdir(), "meshwork-dist-"));
    try {
      const tsc = path.join(root, "node_modules/typescript/bin/tsc");
      const flags = ["-p", path.join(root, "tsconfig.build.json"), "--outDir", dist, "--declaration", "false"];
      execFileSync(process.execPath, [tsc, ...flags], { cwd: root });
      writeFileSync(path.join(dist, "package.json"), '{"type":"module"}');
      const url = (file: string): string => JSON.stringify(pathToFileURL(path.join(dist, file)).href);
      const script = `
        import { compileInWorker } from ${url("compile/background.js")};
        import { functionSource } from ${url("compile/step.js")};
        import { MeshLayout } from ${url("ir/mesh.js")};
        import { forwardOnly } from ${url("passes/schedules.js")};
        import { flatten, SymBuilder } from ${url("tensor/trace.js")};
        const b = new SymBuilder();
        const graph = flatten([{ name: "y", sym: b.unary("tanh", b.constant(1, "f32", [3])) }]);
        const options = { layout: new MeshLayout({}), batchSize: 0, microbatches: 1, schedule: forwardOnly(1, 1),
          stageOfBlock: new Map(), parameterSpecs: new Map(), passes: { precision: "f32" } };
        const { programs, outputs } = await compileInWorker(functionSource(graph), options);
        console.log(programs.length, outputs[0].name);
      `;
      // No timeout ends it early: it would wait for the idle worker's five seconds, or for ever.
      const began = performance.now();
      const run = spawnSync(process.execPath, ["--input-type=module", "-e", script], {
        encoding: "utf8",
        timeout: 30_000,
      });
      assert.equal(run.stdout, "1 y\n", run.stderr);
      assert.ok(performance.now() - began < 4900, "the idle worker kept the process alive");
    } finally {
      rmSync(dist, { recursive: true });
    }
  });
});
