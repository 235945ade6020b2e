// The command: verbs, help, exit codes; and doctor.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { checkNode, diagnose } from "../../lib/cli/doctor.ts";
import { driverOf, findProgram, gpusOf, simdOf } from "../../lib/cli/machine.ts";
import { runCommand } from "../../lib/cli/verbs.ts";

async function run(...args: readonly string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ["", ""];
  const stdout = { write: (text: string) => (out += text) };
  const stderr = { write: (text: string) => (err += text) };
  const code = await runCommand(args, { stdout, stderr, signal: new AbortController().signal });
  return { code, out, err };
}

describe("command", () => {
  it("without a verb shows the verbs and exits with 2", async () => {
    const { code, out, err } = await run();
    assert.deepEqual([code, out], [2, ""]);
    assert.match(err, /train .*\n.*generate .*\n.*inspect .*\n.*doctor/);
  });

  it("has help for itself and every verb, with an example", async () => {
    for (const args of [
      ["--help"],
      ["-h"],
      ["help"],
      ["train", "--help"],
      ["generate", "-h"],
      ["doctor", "--help"],
      ["help", "train"],
    ]) {
      const { code, out } = await run(...args);
      assert.equal(code, 0, args.join(" "));
      assert.match(out, /Examples?:\n {2}meshwork /);
    }
  });

  it("refuses unknown verbs and flags with the nearest, exit code 2", async () => {
    const verb = await run("trian");
    assert.equal(verb.code, 2);
    assert.match(verb.err, /unknown verb "trian"; the nearest is "train"/);
    const flag = await run("train", "--sed", "1");
    assert.equal(flag.code, 2);
    assert.match(flag.err, /^meshwork train: unknown flag --sed; the nearest is --seed\nSee meshwork train --help/);
  });

  it("prints its version", async () => {
    assert.match((await run("--version")).out, /^\d+\.\d+\.\d+\n$/);
  });

  it("runs as a program", () => {
    const main = fileURLToPath(new URL("../../lib/cli/main.ts", import.meta.url));
    const { status, stdout, stderr } = spawnSync(process.execPath, ["--import", "tsx/esm", main, "doctor", "--jsn"], {
      encoding: "utf8",
    });
    assert.deepEqual([status, stdout], [2, ""]);
    assert.match(stderr, /the nearest is --json/);
  }).timeout(20_000);
});

describe("doctor", () => {
  it("describes the machine, for people and for programs", async () => {
    const text = await run("doctor");
    for (const word of ["processor", "memory", "Node.js", "native addon", "NVIDIA driver", "NCCL", "MPI launcher"]) {
      assert.ok(text.out.includes(word), word);
    }
    const json = await run("doctor", "--json");
    const diagnosis = JSON.parse(json.out);
    assert.equal(diagnosis.machine.cores, os.availableParallelism());
    assert.equal(json.code, diagnosis.works.cpu ? 0 : 1);
    assert.equal(json.out.trim().split("\n").length, 1);
  });

  it("gives one command for each thing that is wrong and can be mended", async () => {
    const { findings, gpus } = await diagnose({ PATH: "" });
    const launcher = findings.find(({ name }) => name === "MPI launcher");
    assert.equal(launcher?.ok, false);
    assert.match(launcher?.fix ?? "", /openmpi/);
    if (!gpus.present) assert.equal(findings.find(({ name }) => name === "NCCL")?.fix, undefined);
    assert.equal(checkNode("20.18.0").ok, false);
    assert.deepEqual([checkNode("20.19.0").ok, checkNode("24.0.0").ok], [true, true]);
  });

  it("reads what the system says", () => {
    assert.deepEqual(simdOf("model name : x\nflags\t\t: fpu avx2 fma avx512f\n"), ["avx2", "fma", "avx512f"]);
    assert.deepEqual(simdOf("Features\t: fp asimd sve\n"), ["asimd", "sve"]);
    assert.deepEqual(simdOf(""), []);
    const driver = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n";
    assert.equal(driverOf(driver), "550.54.15");
    assert.equal(
      driverOf("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build\n"),
      "570.86.10",
    );
    assert.equal(driverOf(""), undefined);
    assert.deepEqual(gpusOf("0, NVIDIA H200, 143771, 9.0\nNo devices were found\n"), [
      { index: 0, name: "NVIDIA H200", memoryMiB: 143771, computeCapability: "9.0" },
    ]);
  });

  it("finds programs on the path", async () => {
    const root = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
    try {
      writeFileSync(path.join(root, "mpirun"), "", { mode: 0o755 });
      assert.equal(await findProgram("mpirun", { PATH: root }), path.join(root, "mpirun"));
      assert.equal(await findProgram("srun", { PATH: root }), undefined);
    } finally {
      rmSync(root, { recursive: true });
    }
  });
});
