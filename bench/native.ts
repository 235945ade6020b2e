// The programs of bench/native: compiled when they are needed, and asked line by line.
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../node_modules/.cache/meshwork-bench/", import.meta.url));
const compiler = process.env.CXX ?? "c++";
const flags = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-pthread"];

/** A helper program, or why there is none. */
export type Helper = NativeProgram | string;

/** A program that answers each line with a JSON object of numbers. */
export class NativeProgram implements Disposable {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(file: string) {
    // Threads of OpenMP that wait for work would take the cores from what is measured in turns with them.
    const env = { ...process.env, OMP_WAIT_POLICY: "passive" };
    this.#child = spawn(file, { stdio: ["pipe", "pipe", "inherit"], env });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  async ask(line: string): Promise<Readonly<Record<string, number>>> {
    this.#child.stdin!.write(`${line}\n`);
    const { value, done } = await this.#lines.next();
    if (done === true) throw new Error(`a program of bench/native ended at "${line}"`);
    return JSON.parse(value);
  }

  [Symbol.dispose](): void {
    this.#child.stdin!.end();
  }
}

/** Compiles (once) and starts bench/native/<name>.cc. */
export function startNative(name: string, libraries: readonly string[] = []): Helper {
  const source = fileURLToPath(new URL(`native/${name}.cc`, import.meta.url));
  const hash = createHash("sha256")
    .update(readFileSync(source))
    .update([compiler, ...flags, os.cpus()[0]?.model].join());
  const file = path.join(folder, `${name}-${hash.digest("hex").slice(0, 16)}`);
  if (!existsSync(file)) {
    mkdirSync(folder, { recursive: true });
    const part = `${file}.part`;
    const { status, stderr, error } = spawnSync(compiler, [...flags, source, "-o", part, ...libraries], {
      encoding: "utf8",
    });
    if (error) return `no C++ compiler (${compiler})`;
    if (status !== 0) return `bench/native/${name}.cc does not compile here (${reasonOf(stderr)})`;
    renameSync(part, file);
  }
  return new NativeProgram(file);
}

function reasonOf(messages: string): string {
  return messages.split("\n").find((line) => /error|cannot find/.test(line)) ?? "see the compiler";
}
