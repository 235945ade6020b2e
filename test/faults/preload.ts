// The library that injects faults and logs reads, and a script of this folder bundled to run with it preloaded.
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

export const root = fileURLToPath(new URL("../../", import.meta.url));

/** Where library and bundle are, and how they are made. */
export class Preload {
  /** Two folders below the root, where the bundled code looks for the addon. */
  readonly folder = path.join(root, "node_modules", ".meshwork-faults");
  readonly library: string;
  /** The bundled script. */
  readonly script: string;
  readonly #source: string;

  /** @param source name of the script */
  constructor(source: string) {
    this.#source = path.join(root, "test/faults", source);
    const name = path.basename(source, ".ts");
    this.script = path.join(this.folder, `${name}.mjs`);
    this.library = path.join(this.folder, `${name}.so`);
  }

  /** Compiles and bundles. */
  async build(): Promise<void> {
    mkdirSync(this.folder, { recursive: true });
    const flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"];
    const library = path.join(root, "native/test/faults/faults.cc");
    execFileSync(process.env.CXX ?? "c++", [...flags, library, "-o", this.library, "-ldl"]);
    await build({
      entryPoints: [this.#source],
      outfile: this.script,
      bundle: true,
      platform: "node",
      format: "esm",
      target: "node20",
      logLevel: "error",
    });
  }
}
