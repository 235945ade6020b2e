// The examples run and print what they promise.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const folder = fileURLToPath(new URL("../examples/", import.meta.url));

function run(name: string): string[] {
  const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx/esm", `${folder}${name}.ts`], {
    encoding: "utf8",
  });
  assert.equal(status, 0, stderr);
  return stdout.trimEnd().split("\n");
}

const expected: Readonly<Record<string, (lines: readonly string[]) => void>> = {
  quickstart(lines) {
    const losses = lines.flatMap((line) => /^step \d+: loss ([\d.]+)$/.exec(line)?.[1] ?? []).map(Number);
    assert.equal(losses.length, 4);
    assert.ok(Math.abs(losses[0]! - Math.log(96)) < 0.2 && losses[3]! < 0.1, losses.join(" "));
    assert.equal(lines[4], "mesh pp=2,tp=2, MiB per device");
    assert.equal(lines.filter((line) => /^cpu:\d /.test(line)).length, 4);
  },
  tensors(lines) {
    const gelu = (x: number) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
    const sum = [4.5, -0.5, 9.5, -2].map(gelu).reduce((a, b) => a + b);
    assert.deepEqual(lines, [
      `sum of gelu(x w): ${sum.toFixed(4)}`,
      `loss: ${(4.5 ** 2 + 0.5 ** 2 + 9.5 ** 2 + 2 ** 2) / 4}`,
      "d loss / d x: [[1.375,4.4375],[3.375,9.25]]",
      "d loss / d w: [[16.5,-3.25],[23.5,-4.5]]",
      "third derivative: 48",
      "row 5 of a b: [177,148,129]",
      "compiled: [ 6, 3 ] 276 programs: 1",
    ]);
  },
  buffers(lines) {
    assert.deepEqual(lines, [
      "summed on every device: 6 10 14 18 22 26",
      "the parts' lengths: 2 2 1 1",
      "gathered on device 1: 6 10 14 18 22 26",
      "softmax: 0.000 0.018 0.982 0.000 0.018 0.982 true",
    ]);
  },
  collectives(lines) {
    assert.deepEqual(lines, [
      "each device brings       [0 10 20 30]  [1 11 21 31]  [2 12 22 32]  [3 13 23 33]",
      "allReduce over tp        [1 21 41 61]  [1 21 41 61]  [5 25 45 65]  [5 25 45 65]",
      "max over tp              [1 11 21 31]  [1 11 21 31]  [3 13 23 33]  [3 13 23 33]",
      "reduceScatter over tp    [1 21]  [41 61]  [5 25]  [45 65]",
      "allToAll over tp         [0 10 1 11]  [20 30 21 31]  [2 12 3 13]  [22 32 23 33]",
      "broadcast over tp        [1 11 21 31]  [1 11 21 31]  [3 13 23 33]  [3 13 23 33]",
      "allGather over tp        [0 1 11]  [0 1 11]  [2 3 13]  [2 3 13]",
      "allReduce over all       [6 46 86 126]  [6 46 86 126]  [6 46 86 126]  [6 46 86 126]",
    ]);
  },
};

describe("examples", function () {
  this.timeout(60_000);
  it("are all here", () => {
    const files = readdirSync(folder).filter((name) => name.endsWith(".ts"));
    assert.deepEqual(
      files.sort(),
      Object.keys(expected)
        .map((name) => `${name}.ts`)
        .sort(),
    );
  });
  it("quickstart is what the README shows", () => {
    const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
    const shown = /```ts\n([\s\S]*?)```/.exec(readme)?.[1] ?? "";
    assert.ok(shown.includes("trainStep"));
    const source = readFileSync(`${folder}quickstart.ts`, "utf8");
    assert.ok(source.includes(shown.replace('"meshwork"', '"../lib/index.ts"')), "README.md and quickstart.ts differ");
  });
  for (const [name, check] of Object.entries(expected)) it(name, () => check(run(name)));
});
