// A throwaway copy of the repository in which mistakes are seeded: the tree it is made from is never touched.
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { type Mutant, mutated } from "./mutant.ts";

/** What is copied of the repository; node_modules is linked. */
const copied = [
  ".mocharc.json",
  "CMakeLists.txt",
  "bench",
  "docs",
  "examples",
  "lib",
  "native",
  "package.json",
  "scripts",
  "test",
  "tsconfig.json",
];

/** The addon, where a build has put it. */
const addons = ["build-native/meshwork.node", "build/Release/meshwork.node"];

/** How a run of the tests ended. */
export interface TestRun {
  readonly seconds: number;
  /** The first test that failed, or how the process ended; undefined where all passed. */
  readonly failure: string | undefined;
  /** True where no test ran: the sources could not be loaded. */
  readonly broken: boolean;
  /** Of a broken run: what was printed. */
  readonly output: string;
}

/** The copy. Dispose of it after use. */
export class Workplace implements Disposable {
  readonly folder: string;

  constructor(root: string) {
    this.folder = mkdtempSync(path.join(tmpdir(), "meshwork-mutants-"));
    for (const name of [...copied, ...addons]) {
      const from = path.join(root, name);
      if (existsSync(from)) cpSync(from, path.join(this.folder, name), { recursive: true });
    }
    symlinkSync(path.join(root, "node_modules"), path.join(this.folder, "node_modules"));
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Seeds a mistake; what is returned takes it back. */
  seed(mutant: Mutant): Disposable {
    const file = path.join(this.folder, mutant.file);
    const text = readFileSync(file, "utf8");
    writeFileSync(file, mutated(mutant, text));
    return { [Symbol.dispose]: () => writeFileSync(file, text) };
  }

  /** Builds the addon of the copy. Throws Error where that fails. */
  async build(): Promise<void> {
    // Where a compiler cache is in use, it knows the copy's files from their paths below the base.
    const env = { MESHWORK_CUDA: "0", CCACHE_BASEDIR: this.folder };
    const { code, output } = await this.#node(["scripts/build-native.mjs"], env);
    if (code !== 0) throw new Error(`the addon could not be built:\n${output}`);
  }

  /** Runs test files in order until one test fails. */
  async test(files: readonly string[]): Promise<TestRun> {
    const report = path.join(this.folder, "report.json");
    rmSync(report, { force: true });
    const began = performance.now();
    const reporter = ["--reporter", "json", "--reporter-option", `output=${report}`];
    const { code, signal, output } = await this.#node([
      "node_modules/mocha/bin/mocha.js",
      "--bail",
      "--exit",
      ...reporter,
      ...files,
    ]);
    const seconds = (performance.now() - began) / 1000;
    if (signal !== null) return { seconds, failure: `the process ended by ${signal}`, broken: false, output };
    if (!existsSync(report)) return { seconds, failure: `the process ended with ${code}`, broken: true, output };
    const { failures } = JSON.parse(readFileSync(report, "utf8")) as { failures: readonly { fullTitle: string }[] };
    return { seconds, failure: failures[0]?.fullTitle, broken: false, output };
  }

  #node(
    args: readonly string[],
    env: Record<string, string> = {},
  ): Promise<{ code: number | null; signal: string | null; output: string }> {
    return new Promise((resolve, reject) => {
      const child = spawn(process.execPath, args, { cwd: this.folder, env: { ...process.env, ...env } });
      let output = "";
      const collect = (part: Buffer): void => {
        output = (output + part.toString()).slice(-20_000);
      };
      child.stdout.on("data", collect);
      child.stderr.on("data", collect);
      child.on("error", reject);
      child.on("close", (code, signal) => resolve({ code, signal, output }));
    });
  }
}
