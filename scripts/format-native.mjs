// Formats the C++ and CUDA sources with clang-format; --check only says which are not as .clang-format wants them.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
// The npm package brings programs for these; where none is, the check is another machine's.
const system = { linux: "linux_x64", darwin: "darwin_x64", win32: "win32" }[process.platform];
const program = join(root, "node_modules/clang-format/bin", `${system}`, "clang-format");
const runs = process.arch === "x64" || process.platform === "darwin";

if (!runs || !existsSync(program)) {
  console.warn(`clang-format has no program for ${process.platform} ${process.arch}: native/ is not checked here`);
} else {
  const files = readdirSync(join(root, "native"), { recursive: true })
    .filter((name) => /\.(cc|cu|cuh|h)$/.test(name))
    .map((name) => join("native", name));
  const flags = process.argv.includes("--check") ? ["--dry-run", "-Werror"] : ["-i"];
  const { status } = spawnSync(program, [...flags, ...files], { cwd: root, stdio: "inherit" });
  process.exitCode = status ?? 1;
}
