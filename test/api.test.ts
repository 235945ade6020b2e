// The public surface: its names, its types, and the built package as strangers load it.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import * as meshwork from "../lib/index.ts";
import { apiSurface } from "./api-surface.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const committed = readFileSync(new URL("api-surface.txt", import.meta.url), "utf8")
  .trimEnd()
  .split("\n");

describe("the public API", () => {
  it("has the names of api-surface.txt", () => {
    assert.deepEqual(apiSurface(), committed, "renew it with: npx tsx test/api-surface.ts > test/api-surface.txt");
  });

  it("exports each value of the list, and no other", () => {
    const { nn, optim, data } = meshwork;
    const own = Object.keys(meshwork).filter((name) => !["nn", "optim", "data"].includes(name));
    const inner = Object.entries({ nn, optim, data }).flatMap(([space, names]) =>
      Object.keys(names).map((name) => `${space}.${name}`),
    );
    const values = committed.filter((line) => line.startsWith("value ")).map((line) => line.slice(6));
    assert.deepEqual([...own, ...inner].sort(), values.sort());
  });

  it("errors have stable codes", () => {
    const codes = Object.entries(meshwork).flatMap(([name, value]) => {
      if (typeof value !== "function" || !(value.prototype instanceof meshwork.MeshworkError)) return [];
      const error: unknown = Reflect.construct(value, ["why"]);
      assert.ok(error instanceof meshwork.MeshworkError && error.name === name);
      return [error.code];
    });
    assert.equal(new Set(codes).size, codes.length);
    assert.ok(codes.length >= 16 && codes.every((code) => /^ERR_[A-Z_]+$/.test(code)));
  });

  it("types know the mesh's axes", async () => {
    await using mesh = await meshwork.Mesh.open({ device: "null", axes: { dp: 2, tp: 2 } });
    const rows: meshwork.Mesh<"dp" | "tp"> = mesh;
    assert.equal(rows.tensor([1, 2], { spec: ["dp"] }).rank, 1);
    // @ts-expect-error: the mesh has no axis "pp"
    assert.throws(() => mesh.tensor([1, 2], { spec: ["pp"] }), meshwork.MeshError);
    // @ts-expect-error: nor "ep"
    assert.throws(() => mesh.group("ep"), meshwork.MeshError);
    // @ts-expect-error: nor "cp"
    const f = meshwork.compile(mesh, (x: meshwork.Tensor) => x.mul(2), { in: [["cp"]] });
    await assert.rejects(f.data([1, 2]), meshwork.MeshError);
  });
});

describe("the built package", function () {
  this.timeout(120_000);
  before(() =>
    execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], { cwd: root }),
  );

  const script = `
    const check = async ({ Mesh }) => {
      const mesh = await Mesh.open({ axes: { tp: 2 } });
      console.log(await mesh.tensor([[1, 2], [3, 4]], { spec: [null, "tp"] }).sum().item());
      await mesh.close();
    };`;

  function output(...args: readonly string[]): string {
    const { stdout, stderr, status } = spawnSync(process.execPath, args, { cwd: root, encoding: "utf8" });
    assert.equal(status, 0, stderr);
    return stdout.trim();
  }

  it("is loaded by import", () => {
    const text = `import * as meshwork from "meshwork";${script} await check(meshwork);`;
    assert.equal(output("--input-type=module", "-e", text), "10");
  });

  it("is loaded by require", () => {
    assert.equal(output("--no-warnings", "-e", `${script} check(require("meshwork"));`), "10");
  });

  it("names its types before its code", () => {
    const { exports } = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8"));
    assert.equal(Object.keys(exports["."])[0], "types");
    assert.match(readFileSync(new URL("../dist/index.d.ts", import.meta.url), "utf8"), /Mesh/);
  });
});
