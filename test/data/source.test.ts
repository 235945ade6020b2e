// Data files: order, kinds, digests, and the errors for what cannot be used.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { DataError } from "../../lib/core/errors.ts";
import { defaultDataFiles, findFiles } from "../../lib/data/files.ts";
import { openData, type TokenData } from "../../lib/data/source.ts";

describe("data files", () => {
  let folder: string;
  const at = (...names: readonly string[]) => path.join(folder, ...names);
  const write = (name: string, content: string | Uint8Array) => {
    mkdirSync(path.dirname(at(name)), { recursive: true });
    writeFileSync(at(name), content);
    return at(name);
  };
  beforeEach(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
  });
  afterEach(() => rm(folder, { recursive: true }));

  const tokensOf = ({ tokens }: TokenData) => {
    const out = new Int32Array(tokens.length);
    tokens.read(0, tokens.length, out);
    return [...out];
  };
  const textOf = (data: TokenData) => data.tokenizer!.decode(tokensOf(data));

  it("are found in the order given, sorted by name within folders and globs", async () => {
    for (const name of ["d/b.txt", "d/a/z.txt", "d/B.txt", "d/.hidden", "d/node_modules/x.txt", "y.txt", "x.txt"]) {
      write(name, name);
    }
    symlinkSync(at("d"), at("d", "loop"));
    const found = await findFiles([at("y.txt"), at("d"), at("*.txt")]);
    assert.deepEqual(
      found.map((file) => path.relative(folder, file.path)),
      ["y.txt", "d/B.txt", "d/a/z.txt", "d/b.txt", "x.txt", "y.txt"],
    );
  });

  it("a name with glob characters in it is taken as it stands", async () => {
    const name = write("notes[1].txt", "x");
    assert.deepEqual(
      (await findFiles([name])).map((file) => file.path),
      [name],
    );
  });

  it("text goes through as bytes, one file after the other, with digests", async () => {
    const a = write("a.txt", Uint8Array.of(0xff, 0x00, 0x41));
    const b = write("b.md", "é\n");
    const data = await openData({ paths: [b, a] });
    assert.deepEqual(tokensOf(data), [0xc3, 0xa9, 0x0a, 0xff, 0x00, 0x41]);
    assert.equal(data.tokenizer?.name, "byte");
    const sha256 = createHash("sha256").update("é\n").digest("hex");
    assert.deepEqual(data.files[0], { path: b, bytes: 3, sha256 });
  });

  it("skips files of a folder that are not text", async () => {
    write("d/a.txt", "text");
    const binary = write("d/b.bin", Uint8Array.of(1, 0, 2));
    const data = await openData({ paths: [at("d")] });
    assert.equal(textOf(data), "text");
    assert.deepEqual(data.skipped, [binary]);
  });

  it(".jsonl lines are documents; --field picks the text", async () => {
    const file = write("a.jsonl", '{"text":"one","n":1}\n\n{"text":"zwei ü"}\r\n{"text":"three"}');
    assert.equal(textOf(await openData({ paths: [file] })), "one\nzwei ü\nthree");
    const other = write("b.jsonl", '{"__proto__":"safe"}\n');
    assert.equal(textOf(await openData({ paths: [other], field: "__proto__" })), "safe");
  });

  it("a trained tokenizer puts its end of text between documents", async () => {
    const a = write("a.txt", "the cat the cat the cat the hat\n");
    const b = write("b.jsonl", '{"text":"the cat"}\n{"text":"the hat"}\n');
    const data = await openData({ paths: [a, b], tokenizer: { kind: "bpe", vocabSize: 262 } });
    const end = "<|endoftext|>";
    assert.equal(textOf(data), `the cat the cat the cat the hat\n${end}the cat${end}the hat`);
    data.tokens.checkVocabulary(262);
    assert.throws(() => data.tokens.checkVocabulary(257), DataError);
  });

  it("a model folder's tokenizer is used, unless another is asked for", async () => {
    const a = write("a.txt", "the cat the cat the cat the hat\n");
    const trained = await openData({ paths: [a], tokenizer: { kind: "bpe", vocabSize: 262 } });
    for (const [name, content] of trained.tokenizer!.files) write(`model/${name}`, content);
    const model = { paths: [a], modelFolder: at("model") };
    assert.deepEqual(tokensOf(await openData(model)), tokensOf(trained));
    const bytes = await openData({ ...model, tokenizer: { kind: "byte" } });
    assert.equal(bytes.tokenizer?.name, "byte");
    const file = { kind: "file", path: at("model", "tokenizer.json") } as const;
    assert.deepEqual(tokensOf(await openData({ paths: [a], tokenizer: file })), tokensOf(trained));
  });

  it("token files are read as they are, little-endian", async () => {
    const a = write("a.u16", Uint8Array.of(1, 0, 2, 1));
    const b = write("b.u32", Uint8Array.of(1, 0, 1, 0));
    const data = await openData({ paths: [a, b] });
    assert.deepEqual(tokensOf(data), [1, 258, 65537]);
    assert.equal(data.tokenizer, undefined);
    assert.throws(() => data.tokens.checkVocabulary(258), /a\.u16: token 1 .* is 258/);
    assert.throws(() => data.tokens.checkVocabulary(65537), /b\.u32: token 0 .* is 65537/);
  });

  const refused: readonly (readonly [string, () => Promise<unknown>, RegExp])[] = [
    ["a missing file", () => openData({ paths: [at("none.txt")] }), /none\.txt: no such file/],
    ["an empty file", () => openData({ paths: [write("a.txt", "")] }), /a\.txt: the file is empty/],
    ["an empty token file", () => openData({ paths: [write("a.u16", "")] }), /a\.u16: the file is empty/],
    [
      "half a token",
      () => openData({ paths: [write("a.u16", "abc")] }),
      /3 bytes are no whole number of 2-byte tokens/,
    ],
    ["an empty folder", () => openData({ paths: [folder] }), /the folder has no files/],
    ["a glob without matches", () => openData({ paths: [at("*.txt")] }), /no file matches/],
    ["no path", () => openData({ paths: [] }), /no path/],
    ["a device", () => openData({ paths: ["/dev/null"] }), /neither a regular file nor a folder/],
    ["tokens with text", () => openData({ paths: [write("a.u16", "ab"), write("b.txt", "x")] }), /one or the other/],
    [
      "a tokenizer for token files",
      () => openData({ paths: [write("a.u16", "ab")], tokenizer: { kind: "byte" } }),
      /--tokenizer does not apply/,
    ],
    ["a bad line", () => openData({ paths: [write("a.jsonl", '{"text":"x"}\n{')] }), /a\.jsonl line 2: not valid JSON/],
    ["a line that is no object", () => openData({ paths: [write("a.jsonl", "3\n")] }), /line 1: a JSON object/],
    ["a missing field", () => openData({ paths: [write("a.jsonl", '{"body":"x"}')] }), /"text" \(it has body\)/],
    ["a field that is no text", () => openData({ paths: [write("a.jsonl", '{"text":3}')] }), /"text" \(it is number\)/],
    ["only blank lines", () => openData({ paths: [write("a.jsonl", "\n\n")] }), /no text in them/],
    [
      "invalid utf-8 where characters are needed",
      () => openData({ paths: [write("a.txt", Uint8Array.of(65, 255))], tokenizer: { kind: "bpe", vocabSize: 300 } }),
      /a\.txt: byte 1 .* not valid utf-8/,
    ],
  ];
  for (const [what, run, message] of refused) {
    it(`${what} is refused`, async () => {
      await assert.rejects(run, (error) => error instanceof DataError && message.test(error.message));
    });
  }

  it("the default data is the text of @types/node, in a stable order", async () => {
    const files = await defaultDataFiles();
    assert.ok(files.length > 50 && files.every((file) => file.path.endsWith(".d.ts")));
    assert.deepEqual(files, await defaultDataFiles());
    const data = await openData({});
    assert.ok(data.tokens.length > 2_000_000 && data.tokens.length < 5_000_000);
  });
});
