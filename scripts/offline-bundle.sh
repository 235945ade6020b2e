#!/usr/bin/env bash
# Makes one folder that runs meshwork's tests and benchmarks on a machine without a network and without Node: Node itself
# (compressed), the node_modules that running and testing need, the sources, and, with --built, the built addon and CUDA
# backend. Copy it over and start it there: ./start.sh [command], by default the GPU tests and benchmarks.
# Use: scripts/offline-bundle.sh [--built] FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
built=
if [ "${1:-}" = --built ]; then built=1 && shift; fi
out=${1:?usage: scripts/offline-bundle.sh [--built] FOLDER}
if [ -e "$out" ]; then echo "$out is there already" >&2 && exit 1; fi
mkdir -p "$out"

# Node, without its debug symbols.
cp "$(command -v node)" "$out/node"
strip "$out/node" 2>/dev/null || true
xz -T0 -6 "$out/node"

# What git knows, and what was made since; shared models and results stay behind.
git ls-files --cached --others --exclude-standard -z -- . ':!shared' ':!bench/results' |
  tar --null --files-from=- --create --file=- | tar --extract --file=- --directory="$out"

# Packages: those of package.json that running, building and testing need, with theirs. Linters and the compiler of types
# stay behind.
needed="@huggingface/tokenizers tinyglobby mocha tsx fast-check benchmark node-addon-api node-api-headers"
node --input-type=module - "$out" $needed <<'JS'
import { cpSync, existsSync, readFileSync } from "node:fs";
import path from "node:path";
const [out, ...needed] = process.argv.slice(2);
const done = new Set();
/** The folder in which Node would find a package that `from` asks for. */
function find(name, from) {
  for (let at = from; ; at = path.dirname(at)) {
    const folder = path.join(at, "node_modules", name);
    if (existsSync(folder)) return folder;
    if (at === path.dirname(at)) return undefined;
  }
}
function take(name, from, optional) {
  const folder = find(name, from);
  if (folder === undefined) {
    if (optional) return;
    throw new Error(`${name} is not installed: run npm ci`);
  }
  const relative = path.relative(process.cwd(), folder);
  if (done.has(relative)) return;
  done.add(relative);
  cpSync(folder, path.join(out, relative), { recursive: true, dereference: true });
  const { dependencies = {}, optionalDependencies = {} } = JSON.parse(readFileSync(path.join(folder, "package.json")));
  for (const next of Object.keys(dependencies)) take(next, folder, next in optionalDependencies);
  for (const next of Object.keys(optionalDependencies)) take(next, folder, true);
}
for (const name of needed) take(name, process.cwd(), false);
JS
rm -rf "$out"/node_modules/.bin "$out"/node_modules/esbuild/bin  # the binary is @esbuild's, a second time
find "$out/node_modules" \( -name '*.map' -o -name '*.md' -o -name '*.flow' \) -type f -delete

if [ -n "$built" ]; then
  mkdir -p "$out/build-native"
  cp build-native/*.node "$out/build-native/"
  if [ -e build-native/meshwork_cuda.so ]; then cp build-native/meshwork_cuda.so "$out/build-native/"; fi
  if [ -d dist ]; then cp -r dist "$out/"; fi
fi

cat >"$out/start.sh" <<'SH'
#!/usr/bin/env bash
# Unpacks Node on first use, builds the addon where it was not brought, and runs a command: the GPU tests and benchmarks
# when none is given.
set -euo pipefail
cd "$(dirname "$0")"
if [ ! -x bin/node ]; then mkdir -p bin && xz -dc node.xz >bin/node.part && chmod +x bin/node.part && mv bin/node.part bin/node; fi
export PATH="$PWD/bin:$PATH"
if [ ! -e build-native/meshwork.node ]; then MESHWORK_CUDA=${MESHWORK_CUDA:-1} node scripts/build-native.mjs; fi
if [ $# -gt 0 ]; then exec "$@"; fi
node scripts/test-gpu.mjs
exec node --import tsx/esm bench/gpu.ts
SH
chmod +x "$out/start.sh"
du -sh "$out" | cut -f1
