// `npm run test:gpu`: the tests that run on CUDA devices. Without a GPU it says how many cases were not run, and why.
import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const folders = ["conformance", "parallel", "fuzz"].map((name) => `test/${name}/**/*.test.ts`);
const mocha = fileURLToPath(new URL("../node_modules/mocha/bin/mocha.js", import.meta.url));

function run(args, extra = {}) {
  const env = { ...process.env, MESHWORK_TEST_DEVICE: "cuda", ...extra };
  return spawnSync(process.execPath, [mocha, ...folders, ...args], {
    cwd: root,
    env,
    encoding: "utf8",
    ...extra.spawn,
  });
}

/** Cases in the tests, counted without running them. */
function count() {
  const { stdout } = run(["--dry-run", "--reporter", "json"]);
  const begin = stdout.indexOf("{");
  return begin < 0 ? "all" : String(JSON.parse(stdout.slice(begin)).stats.tests);
}

const { gpus, detail } = createRequire(import.meta.url)(`${root}build-native/meshwork.node`).cudaStatus();
if (gpus === 0) {
  console.log(`No GPU can be used (${detail}).`);
  console.log(`${count()} cases were not run.`);
  process.exit(0);
}
console.log(`${gpus} GPU(s); ${detail}`);
const { status } = run([], { spawn: { stdio: "inherit" } });
process.exit(status ?? 1);
