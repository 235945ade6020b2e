// Environments come and go: worker threads, process exit with work in flight, idle engines.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath, pathToFileURL } from "node:url";
import { promisify } from "node:util";

const lib = pathToFileURL(fileURLToPath(new URL("../../lib/runtime/addon.ts", import.meta.url))).href;
const programs = new URL("program.ts", import.meta.url).href;

/** Runs a script in its own process; it must end by itself. Resolves with what it printed. */
async function script(body: string): Promise<string> {
  const code = `const addon = await import(${JSON.stringify(lib)});
const { longPrograms } = await import(${JSON.stringify(programs)});
const start = () => {
  const engine = addon.engineOpen({ backend: "cpu", devices: 2 });
  const executable = addon.executableLoad(engine, longPrograms(2), [new Int32Array(), new Int32Array()], 0, 0);
  return { engine, run: () => addon.run(engine, executable, new Uint8Array()) };
};
${body}`;
  const args = ["--import=tsx", "--input-type=module", "-e", code];
  const { stdout } = await promisify(execFile)(process.execPath, args, { timeout: 30_000 });
  return stdout.trim();
}

describe("runtime lifecycle", function () {
  this.timeout(40_000);

  it("an idle engine does not keep the process alive", async () => {
    assert.equal(await script("start(); console.log('end')"), "end");
  });

  it("a run keeps the process alive until it is done", async () => {
    assert.equal(await script("start().run().then(() => console.log('ran'))"), "ran");
  });

  it("process.exit with a run in flight ends at once", async () => {
    assert.equal(
      await script(
        "const s = start(); s.run(); s.run(); process.on('exit', () => console.log('bye')); process.exit(0)",
      ),
      "bye",
    );
  });

  it("an uncaught error with a run in flight ends the process with its code", async () => {
    await assert.rejects(script("start().run(); throw new Error('mine')"), (error: unknown) => {
      assert.ok(error instanceof Error && "code" in error && error.code === 1);
      assert.match(error.message, /mine/);
      return true;
    });
  });

  it("works in worker threads, several at once, and they can be terminated in mid-run", async () => {
    const worker = `(async () => {
  const { parentPort } = await import("node:worker_threads");
  (await import(${JSON.stringify(import.meta.resolve("tsx/esm/api"))})).register();
  const addon = await import(${JSON.stringify(lib)});
  const { longPrograms } = await import(${JSON.stringify(programs)});
  const engine = addon.engineOpen({ backend: "cpu", devices: 2 });
  const executable = addon.executableLoad(engine, longPrograms(2), [new Int32Array(), new Int32Array()], 0, 0);
  await addon.run(engine, executable, new Uint8Array());
  parentPort.postMessage("ran");
  addon.run(engine, executable, new Uint8Array());
})();`;
    const body = `const { Worker } = await import("node:worker_threads");
const { once } = await import("node:events");
await Promise.all([0, 1, 2].map(async () => {
  const worker = new Worker(${JSON.stringify(worker)}, { eval: true });
  const [message] = await once(worker, "message");
  console.log(message);
  await worker.terminate();
}));
await start().run();
console.log("main ran");`;
    assert.equal(await script(body), "ran\nran\nran\nmain ran");
  });
});
