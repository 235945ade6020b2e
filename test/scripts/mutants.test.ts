// The seeded mistakes themselves: their texts are in the sources, each once, so that none rots.
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { mutants, testFiles } from "../../scripts/mutants/list.ts";
import { mutated } from "../../scripts/mutants/mutant.ts";

const root = path.resolve(import.meta.dirname, "../..");

describe("seeded mistakes", () => {
  it("are texts that the sources have exactly once", () => {
    const problems = mutants.flatMap((mutant) => {
      try {
        const text = readFileSync(path.join(root, mutant.file), "utf8");
        return mutated(mutant, text) === text ? [`"${mutant.name}" changes nothing`] : [];
      } catch (error) {
        return [(error as Error).message];
      }
    });
    assert.deepEqual(problems, []);
  });

  it("were found, all of them, when docs/TESTING.md was written", () => {
    const rows = readFileSync(path.join(root, "docs/TESTING.md"), "utf8").split("\n");
    const missing = mutants.filter(({ name }) => {
      return !rows.some((row) => row.startsWith(`| ${name} |`) && !row.includes("**not found**"));
    });
    assert.deepEqual(
      missing.map((m) => m.name),
      [],
    );
  });

  it("have names of their own and tests that are there", () => {
    assert.equal(new Set(mutants.map((m) => m.name)).size, mutants.length);
    assert.deepEqual(
      testFiles.filter((file) => !existsSync(path.join(root, file))),
      [],
    );
  });
});
