// The layer check: this repository passes; seeded upward imports and circles are found with file and line.
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { checkLayers } from "../../scripts/layers.ts";

describe("the layer check", () => {
  let root: string;
  beforeEach(() => {
    root = mkdtempSync(path.join(tmpdir(), "meshwork-layers-"));
  });
  afterEach(() => {
    rmSync(root, { recursive: true, force: true });
  });

  /** Problems of a tree of these files. */
  function check(files: Record<string, string>): string[] {
    for (const [name, text] of Object.entries(files)) {
      mkdirSync(path.dirname(path.join(root, name)), { recursive: true });
      writeFileSync(path.join(root, name), text);
    }
    return checkLayers(root);
  }

  it("passes this repository", () => {
    assert.deepEqual(checkLayers(path.resolve(import.meta.dirname, "../..")), []);
  });

  it("passes imports that point down or aside, packages, comments and texts", () => {
    const problems = check({
      "lib/index.ts": 'export * from "./train/step.ts";\n',
      "lib/train/step.ts":
        'import { x } from "../nn/x.ts";\nimport type { C } from "../core/c.ts";\nimport fs from "node:fs";\n',
      "lib/nn/x.ts":
        'export const x = "import y from \'../cli/main.ts\'"; // from "../cli/main.ts"\n/*\nimport "../cli/main.ts";\n*/\n',
      "lib/core/c.ts": "export const c = `\nimport '../nn/x.ts'\n`;\n",
      "lib/cli/main.ts": 'export type { A } from "./a.ts";\n',
      "lib/cli/a.ts": 'import {\n  b,\n} from "./b.ts";\nimport "./main.ts";\n',
      "lib/cli/b.ts": 'export const b = () => import("./a.ts");\nexport type B = 1;\n',
      "native/addon/a.cc": '#include "runtime/r.h"\n#include <vector>\n',
      "native/runtime/r.h": '#include "backend/b.h"\n#include "io/i.h"\n',
      "native/backend/b.h": '#include "runtime/pool.h"\n#include "generated.inc"\n',
      "native/runtime/pool.h": '#include "core/c.h"\n',
      "native/io/i.h": '#include "core/c.h"\n',
      "native/core/c.h": '// #include "addon/a.h"\n',
    });
    assert.deepEqual(problems, []);
  });

  const seeded: [string, Record<string, string>, RegExp[]][] = [
    [
      "an upward import",
      { "lib/ir/a.ts": '// A.\nimport { b } from "../ops/b.ts";\n', "lib/ops/b.ts": "" },
      [/^lib\/ir\/a\.ts:2: imports lib\/ops\/b\.ts, which is in a higher layer \(ops is above ir\)$/],
    ],
    [
      "upward imports of every form",
      {
        "lib/core/a.ts":
          'import type {\n  B,\n} from "../ir/b.ts";\nexport * from "../ir/b.ts";\nimport "../ir/b.ts";\nawait import("../ir/b.ts");\ntype T = import("../ir/b.ts").B;\n',
        "lib/ir/b.ts": "",
      },
      [/^lib\/core\/a\.ts:3: /, /a\.ts:4: /, /a\.ts:5: /, /a\.ts:6: /, /a\.ts:7: /],
    ],
    [
      "a pass that sees the runtime",
      { "lib/passes/a.ts": 'import "../runtime/b.ts";\n', "lib/runtime/b.ts": "" },
      [/a\.ts:1: .*passes may not see runtime/],
    ],
    [
      "a circle of files",
      {
        "lib/ir/a.ts": 'import "./b.ts";\n',
        "lib/ir/b.ts": 'import "./c.ts";\n',
        "lib/ir/c.ts": '\nimport "./a.ts";\n',
      },
      [/^lib\/ir\/c\.ts:2: closes a circle: lib\/ir\/a\.ts > lib\/ir\/b\.ts > lib\/ir\/c\.ts > lib\/ir\/a\.ts$/],
    ],
    [
      "a circle of folders of one layer",
      {
        "lib/nn/a.ts": 'import "../optim/b.ts";\n',
        "lib/optim/b.ts": "",
        "lib/optim/c.ts": 'import "../nn/d.ts";\n',
        "lib/nn/d.ts": "",
      },
      [/closes a circle: lib\/nn > lib\/optim > lib\/nn$/],
    ],
    ["a folder in no layer", { "lib/misc/a.ts": "" }, [/^lib\/misc\/a\.ts:1: is in no layer/]],
    [
      "an upward include, and io that sees more than core",
      {
        "native/core/c.h": '#pragma once\n#include "backend/b.h"\n',
        "native/backend/b.h": "",
        "native/io/i.cc": '#include "backend/b.h"\n',
      },
      [
        /^native\/core\/c\.h:2: imports native\/backend\/b\.h, .*\(backend is above core\)$/,
        /^native\/io\/i\.cc:1: .*io may not see backend/,
      ],
    ],
  ];
  for (const [what, files, expected] of seeded) {
    it(`finds ${what}`, () => {
      const problems = check(files);
      assert.equal(problems.length, expected.length, problems.join("\n"));
      expected.forEach((pattern, i) => {
        assert.match(problems[i]!, pattern);
      });
    });
  }
});
