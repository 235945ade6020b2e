// What a load reads, as the system's calls show it: under every kind of layout each byte of each shard once.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { Preload } from "./preload.ts";

const nothing = [[], [], [], []];
const layouts = [
  { axes: { tp: 2, dp: 2 }, specs: [["tp"], [null, "tp"], ["tp", "dp"], []] },
  { axes: {}, specs: nothing },
  { axes: { dp: 3 }, specs: nothing },
  { axes: { tp: 3 }, specs: [[null, "tp"], ["tp"], [null, "tp"], ["tp"]] },
  { axes: { fsdp: 4 }, specs: [["fsdp"], ["fsdp"], ["fsdp"], ["fsdp"]] },
  { axes: { pp: 2, tp: 2 }, specs: [["tp"], ["tp"], ["tp"], []] },
  { axes: { cp: 2, ep: 3 }, specs: [["ep"], [["ep", "cp"]], [["cp", "ep"]], []] },
];

/** A stretch of a file that was read. */
interface Read {
  readonly at: number;
  readonly bytes: number;
  readonly file: string;
}

describe("what a load reads", function () {
  this.timeout(120_000);
  const preload = new Preload("reader.ts");
  let scratch = "";

  before(async function () {
    if (process.platform !== "linux") this.skip();
    await preload.build();
    scratch = mkdtempSync(path.join(os.tmpdir(), "meshwork-reads-"));
  });
  after(() => {
    if (scratch !== "") rmSync(scratch, { recursive: true });
  });

  /** Reads of shards, in the files' order. */
  function readsOf(name: string): Read[] {
    const lines = readFileSync(path.join(scratch, name), "utf8").trim().split("\n");
    const reads = lines.map((line): Read => {
      const [at, bytes, file] = line.split(" ");
      return { at: Number(at), bytes: Number(bytes), file: path.basename(file!) };
    });
    const shards = reads.filter(({ file }) => file.endsWith(".safetensors"));
    return shards.sort((a, b) => (a.file < b.file ? -1 : a.file > b.file ? 1 : a.at - b.at));
  }

  it("is each byte once under every layout, and of parameters alone only theirs", () => {
    const env = { ...process.env, LD_PRELOAD: preload.library, MESHWORK_FAULT_UNDER: scratch };
    const args = [preload.script, scratch, JSON.stringify(layouts)];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { env, encoding: "utf8" });
    assert.equal(status, 0, stderr);
    const reports: { bytesRead: number; right: boolean[] }[] = stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    assert.equal(reports.length, 2 * (layouts.length - 1));
    const folder = path.join(scratch, "step-00000001");
    const sizes = readdirSync(folder)
      .filter((name) => name.endsWith(".safetensors"))
      .map((name) => [name, statSync(path.join(folder, name)).size] as const);
    assert.equal(sizes.length, 4);
    const stateBytes = 37 * 50 * 4;
    reports.forEach(({ bytesRead, right }, n) => {
      assert.deepEqual(right, [true, true, true, true]);
      const reads = readsOf(`reads-${n >> 1}-${n % 2 === 0 ? "all" : "parameter"}`);
      reads.forEach(({ file, at }, i) => {
        const before = reads[i - 1];
        assert.ok(before?.file !== file || before.at + before.bytes <= at, `byte ${at} of ${file} is read twice`);
      });
      assert.equal(
        bytesRead,
        reads.reduce((sum, { bytes }) => sum + bytes, 0),
      );
      const all = sizes.reduce((sum, [, bytes]) => sum + bytes, 0);
      assert.equal(bytesRead, n % 2 === 0 ? all : all - stateBytes);
    });
  });
});
