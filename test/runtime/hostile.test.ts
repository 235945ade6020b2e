// Every native entry against values of the wrong kind: a typed error or the right answer, never a crash.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { info } from "../../lib/runtime/addon.ts";
import { actions, program } from "./program.ts";

type Entry = (...args: unknown[]) => unknown;

/** The raw exports: below the typed functions, which TypeScript callers can't misuse this way. */
function rawAddon(): Readonly<Record<string, Entry>> {
  info(); // reports a missing addon in words
  const require = createRequire(import.meta.url);
  for (const place of ["../../build-native/meshwork.node", "../../build/Release/meshwork.node"]) {
    try {
      return require(fileURLToPath(new URL(place, import.meta.url)));
    } catch {}
  }
  throw new Error("unreachable");
}

function detached(): Uint8Array {
  const bytes = new Uint8Array(16);
  structuredClone(bytes.buffer, { transfer: [bytes.buffer] });
  return bytes;
}

function resizable(): Uint8Array {
  return new Uint8Array(Reflect.construct(ArrayBuffer, [16, { maxByteLength: 64 }]));
}

const thrower = new Proxy(
  {},
  {
    get() {
      throw new TypeError("trap");
    },
  },
);

const hostile: readonly unknown[] = [
  undefined,
  null,
  true,
  "x",
  "",
  Number.NaN,
  Number.POSITIVE_INFINITY,
  -1,
  -0,
  0.5,
  1,
  2 ** 31,
  2 ** 53,
  2 ** 53 + 2,
  1e308,
  10n,
  Symbol("s"),
  {},
  [],
  [1],
  [[]],
  [new Uint8Array(4)],
  [new Int32Array(4)],
  [detached()],
  [thrower],
  new Array(5000).fill(new Int32Array(1)),
  () => 1,
  new Date(),
  thrower,
  new Proxy([], {}),
  new Int32Array(4),
  new Uint8Array(3),
  new Float64Array(2),
  new DataView(new ArrayBuffer(8), 3, 2),
  new ArrayBuffer(8),
  new SharedArrayBuffer(8),
  new Uint8Array(new SharedArrayBuffer(8)),
  detached(),
  resizable(),
  new BigInt64Array(1),
];

const codes = new Set([
  "invalidProgram",
  "invalidArgument",
  "outOfMemory",
  "unsupported",
  "aborted",
  "timeout",
  "io",
  "invalidFile",
]);

/** Calls; anything thrown or rejected must be an Error that says what kind it is (or the proxy's own). */
async function tolerates(entry: Entry, args: readonly unknown[], name: string): Promise<void> {
  try {
    await entry(...args);
  } catch (error) {
    assert.ok(error instanceof Error, name);
    if (error.message === "trap") return;
    assert.ok("code" in error && typeof error.code === "string" && codes.has(error.code), `${name}: ${error.message}`);
  }
}

describe("runtime/addon with hostile values", () => {
  const addon = rawAddon();
  const empty = [program({ arenaBytes: 64, actions: [actions.feed(0, 0, 16), actions.fetch(0, 0, 0, 16)] })];
  let engine = 0;
  let good: Record<string, readonly unknown[]> = {};

  beforeEach(() => {
    engine = Number(addon.engineOpen!("cpu", 1, 1, false, 1000, false));
    const buffer = addon.bufferAlloc!(engine, 0, 64);
    const memory = addon.memoryAlloc!(64);
    const checkpoint = addon.checkpointNew!();
    const executable = addon.executableLoad!(engine, empty, [new Int32Array()], 16, 16);
    good = {
      info: [],
      cudaStatus: [],
      cudaLibraries: [],
      bufferAlloc: [engine, 0, 64],
      bufferWrite: [engine, buffer, 0, new Uint8Array(8)],
      bufferRead: [engine, buffer, 0, new Uint8Array(8)],
      bufferWriteQueued: [engine, buffer, 0, new Uint8Array(8)],
      bufferReadQueued: [engine, buffer, 0, 8],
      executableLoad: [engine, empty, [new Int32Array()], 16, 16],
      executableBind: [engine, executable, [new Int32Array()]],
      run: [engine, executable, new Uint8Array(16), 1],
      cancel: [engine, 1, "reason"],
      abort: [engine, "reason"],
      busy: [engine],
      setProfiling: [engine, true],
      stats: [engine],
      bufferFree: [engine, buffer],
      executableFree: [engine, executable],
      safetensorsOpen: ["/no/such/file", true],
      fileRead: [1, 0, new Uint8Array(8)],
      fileClose: [1],
      memoryAlloc: [64],
      memoryTouch: [memory],
      memoryStop: [memory],
      memoryRead: [memory, 0, new Uint8Array(8)],
      snapshot: [engine, memory, Float64Array.of(Number(buffer), 64, 0)],
      restore: [engine, memory, Float64Array.of(Number(buffer), 0, 0, 0, 0, 2, 2, 3, 4, 2, 2, 6, 6)],
      shardsWrite: [memory, ["/no/such/file"], ["{}"], Float64Array.of(0, 1, 64)],
      checkpointNew: [],
      checkpointOpen: [checkpoint, "/no/such/folder"],
      checkpointManifest: [checkpoint],
      checkpointRead: [checkpoint, memory, Float64Array.of(-1)],
      checkpointClose: [checkpoint],
      folderSteps: [["syncFolder"], ["/no/such/folder"], [""]],
      memoryFree: [memory],
      engineOpen: ["null", 1, 0, false, 1000, true],
      engineClose: [engine],
    };
  });
  afterEach(() => {
    try {
      addon.engineClose!(engine);
    } catch {} // a test may have closed it
  });

  it("covers every entry", () => {
    assert.deepEqual(Object.keys(good).sort(), Object.keys(addon).sort());
  });

  for (const name of Object.keys(rawAddon())) {
    it(name, async function () {
      this.timeout(20_000);
      const entry = addon[name]!;
      const args = good[name]!;
      const opened: unknown[] = [];
      for (let n = 0; n < args.length; n++) await tolerates(entry, args.slice(0, n), `${name} with ${n} arguments`);
      for (let position = 0; position < args.length; position++) {
        for (const value of hostile) {
          const changed = args.map((a, i) => (i === position ? value : a));
          // Opening a thousand devices is a right answer, but not one to wait for.
          if (name === "engineOpen" && typeof value === "number" && value > 8) continue;
          const open = name === "engineOpen";
          await tolerates(
            (...a) => {
              const result = entry(...a);
              if (open) opened.push(result);
              return result;
            },
            changed,
            `${name}, argument ${position}: ${typeof value}`,
          );
        }
      }
      for (const handle of opened) addon.engineClose!(handle);
    });
  }

  it("survives getters that close the engine or detach the buffer", async () => {
    const closing = new Uint8Array(8);
    Object.defineProperty(closing, "buffer", { get: () => addon.engineClose!(engine) });
    await tolerates(addon.bufferWrite!, good.bufferWrite!.with(3, closing), "closing");
    engine = Number(addon.engineOpen!("cpu", 1, 1, false, 1000, false));
    const buffer = addon.bufferAlloc!(engine, 0, 64);
    const vanishing = new Uint8Array(8);
    const memory = vanishing.buffer;
    Object.defineProperty(vanishing, "buffer", { get: () => structuredClone(memory, { transfer: [memory] }) });
    assert.throws(() => addon.bufferWrite!(engine, buffer, 0, vanishing), /still attached/);
  });

  it("refuses handles of other kinds and of closed engines", async () => {
    addon.engineClose!(engine);
    for (const [name, args] of Object.entries(good)) {
      if (args[0] !== engine) continue;
      await assert.rejects(async () => addon[name]!(...args), { code: "invalidArgument" }, name);
    }
  });
});
