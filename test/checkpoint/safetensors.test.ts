// Safetensors: what is written reads back to the bit; each malformed kind is refused, file and tensor named.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import fc from "fast-check";
import { findWeights, Weights, writeSafetensors } from "../../lib/checkpoint/safetensors.ts";
import { parseStrictJson } from "../../lib/checkpoint/strict-json.ts";
import { CheckpointError, FileError } from "../../lib/core/errors.ts";

/** A file's bytes from a header and data; a number for `length` overrides the header's length. */
function fileOf(header: unknown, data: Uint8Array | number[] = [], length?: bigint): Buffer {
  const text = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const prefix = Buffer.alloc(8);
  prefix.writeBigUInt64LE(length ?? BigInt(text.length));
  return Buffer.concat([prefix, text, Uint8Array.from(data)]);
}

const F32 = (shape: number[], begin: number, end: number) => ({ dtype: "F32", shape, data_offsets: [begin, end] });

describe("safetensors", () => {
  let folder: string;
  const at = (name: string) => path.join(folder, name);
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("reads back what it wrote, to the bit", async () => {
    const shape = fc.array(fc.nat(4), { maxLength: 3 });
    const name = fc.string({ unit: "grapheme", minLength: 1, maxLength: 8 }).filter((text) => !text.includes("\0"));
    const tensors = fc.dictionary(name, shape, { maxKeys: 6 });
    await fc.assert(
      fc.asyncProperty(tensors, fc.integer(), async (shapes, seed) => {
        const sources = Object.entries(shapes)
          .filter(([name]) => name !== "__metadata__")
          .map(([key, sizes], i) => {
            const count = sizes.reduce((a, b) => a * b, 1);
            return {
              name: key,
              shape: sizes,
              data: Float32Array.from({ length: count }, (_, j) => Math.fround(seed * 0.37 + i - j / 3)),
            };
          });
        const file = at("a.safetensors");
        await writeSafetensors(
          file,
          sources.map(({ name, shape: sizes, data }) => ({ name, shape: sizes, read: () => data })),
        );
        using weights = await Weights.open(file);
        assert.deepEqual([...weights.tensors.keys()].sort(), sources.map(({ name }) => name).sort());
        for (const { name, shape: sizes, data } of sources) {
          assert.deepEqual(weights.tensors.get(name)?.shape, sizes);
          assert.deepEqual(await weights.read(name), data);
        }
      }),
      { numRuns: 40 },
    );
  });

  it("writes a sorted header padded to 8 bytes, and leaves no temporary behind", async () => {
    const tensor = (name: string) => ({ name, shape: [2], read: async () => Float32Array.of(1, 2) });
    await writeSafetensors(at("a.safetensors"), [tensor("b"), tensor("10"), tensor("a")]);
    const bytes = readFileSync(at("a.safetensors"));
    const length = Number(bytes.readBigUInt64LE());
    assert.equal(length % 8, 0);
    const names = bytes
      .subarray(8, 8 + length)
      .toString()
      .match(/"(\w+)":\{"dtype"/g);
    assert.deepEqual(names, ['"10":{"dtype"', '"a":{"dtype"', '"b":{"dtype"']);
    assert.deepEqual(readdirSync(folder), ["a.safetensors"]);
  });

  it("keeps the old file where writing fails", async () => {
    const file = at("a.safetensors");
    const good = { name: "a", shape: [1], read: () => Float32Array.of(1) };
    await writeSafetensors(file, [good]);
    const before = readFileSync(file);
    const short = { name: "b", shape: [2], read: () => Float32Array.of(1) };
    await assert.rejects(writeSafetensors(file, [good, short]), /tensor "b": shape \[2\] needs 8 bytes, 4 were given/);
    await assert.rejects(writeSafetensors(file, [good, good]), CheckpointError);
    await assert.rejects(writeSafetensors(path.join(file, "x.safetensors"), [good]), FileError);
    assert.deepEqual(readFileSync(file), before);
    assert.deepEqual(readdirSync(folder), ["a.safetensors"]);
  });

  it("converts other types to float32", async () => {
    const file = at("a.safetensors");
    const half = Uint16Array.of(0x3c00, 0xc000, 0x0001, 0x7c00, 0xfe00, 0x7bff, 0x8000);
    const brain = Uint16Array.of(0x3f80, 0xc000, 0x7f80, 0x0001);
    const stored = (
      name: string,
      dtype: "F16" | "BF16" | "I64" | "BOOL" | "F8_E4M3" | "F64",
      view: NodeJS.ArrayBufferView,
      n: number,
    ) => ({
      name,
      dtype,
      shape: [n],
      read: () => new Uint8Array(view.buffer, view.byteOffset, view.byteLength),
    });
    await writeSafetensors(file, [
      stored("half", "F16", half, 7),
      stored("brain", "BF16", brain, 4),
      stored("long", "I64", BigInt64Array.of(-3n, 5n), 2),
      stored("double", "F64", Float64Array.of(0.1), 1),
      stored("bool", "BOOL", Uint8Array.of(1, 0), 2),
      stored("eighth", "F8_E4M3", Uint8Array.of(1), 1),
    ]);
    using weights = await Weights.open(file);
    const expected = [1, -2, 2 ** -24, Infinity, NaN, 65504, -0];
    assert.deepEqual([...(await weights.read("half"))], expected);
    assert.deepEqual([...(await weights.read("brain"))], [1, -2, Infinity, 2 ** -133]);
    assert.deepEqual([...(await weights.read("long"))], [-3, 5]);
    assert.deepEqual([...(await weights.read("double"))], [Math.fround(0.1)]);
    assert.deepEqual([...(await weights.read("bool"))], [1, 0]);
    assert.deepEqual([...(await weights.readStored("eighth"))], [1]);
    await assert.rejects(weights.read("eighth"), /tensor "eighth": dtype F8_E4M3 cannot be read/);
    await assert.rejects(weights.read("none"), /tensor "none": it is not there/);
  });

  it("finds names with and without the transformer. prefix", async () => {
    const tensor = (name: string) => ({ name, shape: [1], read: () => Float32Array.of(1) });
    await writeSafetensors(at("model.safetensors"), [
      tensor("transformer.wte.weight"),
      tensor("ln_f.bias"),
      tensor("lm_head.weight"),
    ]);
    using weights = await Weights.open(folder);
    assert.equal(weights.find("wte.weight")?.name, "transformer.wte.weight");
    assert.equal(weights.find("transformer.wte.weight")?.name, "transformer.wte.weight");
    assert.equal(weights.find("transformer.ln_f.bias")?.name, "ln_f.bias");
    assert.equal(weights.find("lm_head.weight")?.name, "lm_head.weight");
    assert.equal(weights.find("nonesuch"), undefined);
  });

  const good = { a: F32([2], 0, 8) };
  const data = [0, 0, 0, 0, 0, 0, 0, 0];
  const malformed: readonly (readonly [string, Buffer, RegExp])[] = [
    ["no bytes", Buffer.alloc(0), /too short for a safetensors file/],
    ["half a length", Buffer.alloc(5), /too short/],
    ["a header longer than the file", fileOf(good, [], 4096n), /a header of 4096 bytes in a file of/],
    ["a huge header", fileOf(good, data, 2n ** 63n), /a header of 9223372036854775808 bytes/],
    ["a header that is not JSON", fileOf("{]"), /header: expected/],
    ["a header that is not utf-8", fileOf("{}").fill(0xff, 9), /header: /],
    ["a header that is no object", fileOf("[]"), /header: does not begin/],
    ["text after the header", fileOf("{} {}"), /something follows/],
    ["a tensor twice", fileOf(`{"a":${JSON.stringify(good.a)},"a":${JSON.stringify(good.a)}}`, data), /'a' twice/],
    ["a field twice", fileOf('{"a":{"dtype":"F32","dtype":"F32"}}'), /tensor 'a': dtype twice/],
    ["a size that is not exact", fileOf({ a: { ...good.a, shape: [2 ** 60] } }, data), /tensor 'a': a dim beyond/],
    ["an unknown field", fileOf({ a: { ...good.a, x: 1 } }, data), /tensor 'a': unknown field/],
    ["no dtype", fileOf({ a: { shape: [2], data_offsets: [0, 8] } }, data), /tensor 'a': dtype, .* is missing/],
    ["an unknown dtype", fileOf({ a: { ...good.a, dtype: "F31" } }, data), /tensor 'a': unknown dtype 'F31'/],
    ["a negative size", fileOf({ a: { ...good.a, shape: [-2] } }, data), /not an unsigned integer/],
    ["a high rank", fileOf({ a: { ...good.a, shape: Array(9).fill(1) } }, data), /tensor 'a': more than 8 dims/],
    ["a product that overflows", fileOf({ a: { ...good.a, shape: [2 ** 40, 2 ** 40] } }, data), /its size overflows/],
    ["offsets in reverse", fileOf({ a: F32([2], 8, 0) }, data), /tensor 'a': data_offsets 8 to 0/],
    ["offsets that do not fit the shape", fileOf({ a: F32([1], 0, 8) }, data), /8 bytes of data for a shape of 4/],
    ["a hole", fileOf({ a: F32([1], 4, 8) }, data), /tensor 'a' begins at byte 4 .* hole/],
    ["an overlap", fileOf({ a: F32([1], 0, 4), b: F32([2], 0, 8) }, data), /inside another/],
    ["a tail", fileOf(good, [...data, 0]), /1 bytes behind the last tensor/],
    ["data cut short", fileOf(good, data.slice(1)), /tensor 'a': data_offsets 0 to 8 of 7 bytes/],
    ["metadata that is no text", fileOf({ __metadata__: { a: 1 } }), /header: /],
  ];
  for (const [what, bytes, message] of malformed) {
    it(`with ${what} is refused`, async () => {
      const file = at("bad.safetensors");
      writeFileSync(file, bytes);
      await assert.rejects(Weights.open(file), (error) => {
        assert.ok(error instanceof CheckpointError, String(error));
        assert.match(error.message, message);
        assert.ok(error.message.includes(file) && error.details.file === file);
        return true;
      });
    });
  }

  it("with flipped bits in its header never hangs or crashes", async () => {
    const file = at("flip.safetensors");
    const bytes = fileOf({ a: F32([1, 2], 0, 8), "b c": F32([], 8, 12), __metadata__: { format: "pt" } }, [
      ...data,
      1,
      2,
      3,
      4,
    ]);
    await fc.assert(
      fc.asyncProperty(fc.nat(bytes.length * 8 - 97), async (bit) => {
        const flipped = Buffer.from(bytes);
        flipped[bit >> 3]! ^= 1 << (bit & 7);
        writeFileSync(file, flipped);
        // A flip within a name or the metadata's text is not told apart by the format; everything else is refused.
        const opened = await Weights.open(file).catch((error: unknown) => error);
        if (opened instanceof Weights) opened[Symbol.dispose]();
        else assert.ok(opened instanceof CheckpointError, String(opened));
      }),
      { numRuns: 200 },
    );
  });

  it("refuses what is no regular file", async () => {
    mkdirSync(at("dir.safetensors"));
    await assert.rejects(Weights.open(at("dir.safetensors")), /not a regular file/);
    await assert.rejects(Weights.open(at("none.safetensors")), /none\.safetensors: No such file/);
    execFileSync("mkfifo", [at("pipe.safetensors")]);
    await assert.rejects(Weights.open(at("pipe.safetensors")), /not a regular file/);
  });
});

describe("folders of weights", () => {
  let folder: string;
  const at = (name: string) => path.join(folder, name);
  const tensor = (name: string, value: number) => ({ name, shape: [1], read: () => Float32Array.of(value) });
  const writeIndex = (map: unknown) =>
    writeFileSync(at("model.safetensors.index.json"), JSON.stringify({ weight_map: map }));
  beforeEach(async () => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
    await writeSafetensors(at("one.safetensors"), [tensor("a", 1), tensor("b", 2)]);
    await writeSafetensors(at("two.safetensors"), [tensor("c", 3)]);
  });
  afterEach(() => rmSync(folder, { recursive: true }));

  it("are read through their index", async () => {
    writeIndex({ a: "one.safetensors", b: "one.safetensors", c: "two.safetensors" });
    using weights = await Weights.open(folder);
    assert.deepEqual([...(await weights.read("b")), ...(await weights.read("c"))], [2, 3]);
    assert.equal(await findWeights(folder), at("model.safetensors.index.json"));
  });

  const refused: readonly (readonly [string, unknown, RegExp])[] = [
    [
      "a missing shard",
      { a: "one.safetensors", b: "one.safetensors", c: "three.safetensors" },
      /three\.safetensors: No such file/,
    ],
    [
      "a tensor that its shard lacks",
      { a: "one.safetensors", b: "one.safetensors", c: "two.safetensors", d: "two.safetensors" },
      /two\.safetensors, tensor "d"/,
    ],
    [
      "a tensor that the index does not list",
      { a: "one.safetensors", c: "two.safetensors" },
      /one\.safetensors, tensor "b": .* stale/,
    ],
    ["swapped shards", { a: "two.safetensors", b: "two.safetensors", c: "one.safetensors" }, /tensor "a"/],
    ["a shard outside the folder", { a: "../one.safetensors" }, /no plain file name/],
    ["an absolute shard", { a: "/etc/passwd" }, /no plain file name/],
    ["another kind of file", { a: "weights.bin" }, /no plain file name/],
    ["a shard that is no text", { a: 3 }, /no plain file name/],
    ["an empty map", {}, /no weight_map/],
    ["a map that is none", [], /no weight_map/],
    ["a symbolic link", { a: "link.safetensors" }, /link\.safetensors: Too many levels/],
  ];
  for (const [what, map, message] of refused) {
    it(`with ${what} are refused`, async () => {
      symlinkSync(at("one.safetensors"), at("link.safetensors"));
      writeIndex(map);
      await assert.rejects(
        Weights.open(folder),
        (error) => error instanceof CheckpointError && message.test(error.message),
      );
    });
  }

  it("without weights are refused, pickled ones with a reason", async () => {
    assert.equal(await findWeights(folder), undefined);
    await assert.rejects(Weights.open(folder), /no weights: neither model\.safetensors nor/);
    writeFileSync(at("pytorch_model.bin"), "");
    await assert.rejects(Weights.open(folder), /only pytorch_model\.bin is there, which can run code/);
  });
});

describe("strict JSON", function () {
  this.timeout(20_000);
  const plain = (value: unknown): unknown => {
    if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plain(item)]));
    return Array.isArray(value) ? value.map(plain) : value;
  };

  it("reads what JSON.parse reads", () => {
    const value = fc.jsonValue({ maxDepth: 4, noUnicodeString: false });
    fc.assert(
      fc.property(value, fc.constantFrom(undefined, 2), (json, indent) => {
        const text = JSON.stringify(json, undefined, indent);
        fc.pre(!/__proto__/.test(text) && !/\d{16}/.test(text));
        assert.deepEqual(plain(parseStrictJson(text)), JSON.parse(text));
      }),
    );
  });

  it("refuses what JSON.parse refuses", () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'[]{},:"\\01-.e tn'), maxLength: 12 }), (text) => {
        let valid = true;
        try {
          JSON.parse(text);
        } catch {
          valid = false;
        }
        if (!valid) assert.throws(() => parseStrictJson(text), SyntaxError);
      }),
      { numRuns: 500 },
    );
  });
});
