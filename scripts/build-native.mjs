// Builds the addon with CMake into build-native/meshwork.node. Plain Node, so that it runs before anything is built.
// --tests builds the native tests too; --sanitize address|thread builds only them, into a folder of their own.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const root = fileURLToPath(new URL("..", import.meta.url));
const { values: options } = parseArgs({
  options: {
    tests: { type: "boolean", default: false },
    sanitize: { type: "string", default: "" },
    jobs: { type: "string", default: String(availableParallelism()) },
    "list-inputs": { type: "boolean", default: false },
  },
});

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: "inherit" });
  if (error) {
    const hint = error.code === "ENOENT" ? `: ${command} is needed to build meshwork from source` : "";
    console.error(`${error.message}${hint}`);
    process.exit(1);
  }
  if (status !== 0) process.exit(status ?? 1);
}

/**
 * MESHWORK_CUDA=1 or 0 asks for the CUDA backend or for none; MESHWORK_CUDA_ARCHITECTURES is such as
 * "80;90a;90-virtual". With --tests it is compiled wherever nvcc is, for one architecture, or for all with
 * MESHWORK_LONG=1.
 */
function cudaOptions(env) {
  const testing = options.tests && has("nvcc");
  const wanted = env.MESHWORK_CUDA || (testing ? "1" : "AUTO");
  const onOff = { 1: "ON", 0: "OFF" }[wanted] ?? wanted.toUpperCase();
  const all = "80;90a;90-virtual";
  const asked = env.MESHWORK_CUDA_ARCHITECTURES || (options.tests && !env.MESHWORK_LONG ? "90a" : all);
  return [`-DMESHWORK_CUDA=${onOff}`, `-DMESHWORK_CUDA_ARCHITECTURES=${asked}`];
}

function has(command) {
  return spawnSync(command, ["--version"], { stdio: "ignore" }).status === 0;
}

/** Removes a build folder that another source folder or generator has configured: CMake would refuse it. */
function dropForeignCache(folder, generator) {
  const cache = join(folder, "CMakeCache.txt");
  if (!existsSync(cache)) return;
  const text = readFileSync(cache, "utf8");
  const value = (name) => text.match(new RegExp(`^${name}:[A-Z]+=(.*)$`, "m"))?.[1];
  const same = value("CMAKE_HOME_DIRECTORY") === root.replace(/\/$/, "") && value("CMAKE_GENERATOR") === generator;
  if (!same) rmSync(folder, { recursive: true });
}

if (options["list-inputs"]) {
  for (const name of readdirSync(join(root, "native"), { recursive: true })) {
    if (/\.(cc|cu|cuh|h|txt)$/.test(name)) console.log(`native/${name}`);
  }
  process.exit(0);
}

const generator = has("ninja") ? "Ninja" : "Unix Makefiles";
const output = join(root, "build-native");
const folder = options.sanitize ? join(output, options.sanitize) : join(output, "cmake");
dropForeignCache(folder, generator);
const onlyTests = options.sanitize !== "";
run("cmake", [
  "-S",
  root,
  "-B",
  folder,
  "-G",
  generator,
  `-DMESHWORK_SANITIZE=${options.sanitize}`,
  `-DMESHWORK_ADDON=${onlyTests ? "OFF" : "ON"}`,
  `-DMESHWORK_TESTS=${onlyTests || options.tests ? "ON" : "OFF"}`,
  // What a sanitizer is built into opens only beside its run-time library: not where other tests look.
  `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${onlyTests ? folder : output}`,
  ...cudaOptions(process.env),
]);
run("cmake", ["--build", folder, "--parallel", options.jobs]);
