// Tokenizers: round trips, streaming, invalid bytes, and files that read back.
import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import fc from "fast-check";
import { DataError } from "../../lib/core/errors.ts";
import { trainBpe } from "../../lib/data/bpe.ts";
import { HuggingFaceTokenizer } from "../../lib/data/hf-tokenizer.ts";
import {
  ByteTokenizer,
  findTokenizer,
  loadTokenizer,
  parseTokenizerChoice,
  type Tokenizer,
} from "../../lib/data/tokenizer.ts";

const CORPUS = [
  "the cat sat on the mat. the cat's mat, the hat; that cat isn't there!\n\n  indented  text\twith tabs\n",
  "größer süßer Übung 漢字 かな 😀😃 naïve — em dash … ellipsis\r\nwindows lines\r\n 123 4567 89\n",
  "function f(x: number): string { return x + 'a'; } // comment\nfunction g(y: number): string { return f(y); }\n",
];

const text = fc.oneof(
  fc.string({ unit: "binary", maxLength: 60 }).map((s) => s.replace(/\p{Surrogate}/gu, "")),
  fc
    .array(fc.constantFrom(..."the cat 😀\n\t ü漢'sx1".match(/./gsu)!), { maxLength: 60 })
    .map((parts) => parts.join("")),
);

function streamed(tokenizer: Tokenizer, ids: ArrayLike<number>): string {
  const stream = tokenizer.stream();
  return Array.from(ids, (id) => stream.push(id)).join("") + stream.flush();
}

describe("byte tokenizer", () => {
  const bytes = new ByteTokenizer();

  it("decodes what it encodes, whole and streamed", () => {
    fc.assert(
      fc.property(text, (value) => {
        const ids = bytes.encode(value);
        assert.equal(bytes.decode(ids), value);
        assert.equal(streamed(bytes, ids), value);
      }),
    );
  });

  it("never throws on any ids, and streams them as it decodes them", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: -3, max: 300 }), { maxLength: 40 }), (ids) => {
        assert.equal(streamed(bytes, ids), bytes.decode(ids));
      }),
    );
    assert.equal(bytes.decode([0xff, 65, 0xe6, 999, 66]), "\uFFFDA\uFFFD\uFFFDB");
  });

  it("passes invalid utf-8 and byte order marks through unchanged", () => {
    const raw = Uint8Array.of(0xef, 0xbb, 0xbf, 0xff, 0xc0, 65);
    assert.deepEqual(bytes.encodeBytes(raw), raw);
    assert.equal(bytes.decode([0xef, 0xbb, 0xbf, 65]), "\uFEFFA");
  });

  it("shows a character when its last byte comes", () => {
    const stream = bytes.stream();
    assert.deepEqual(
      [...bytes.encode("a😀b")].map((id) => stream.push(id)),
      ["a", "", "", "", "😀", "b"],
    );
  });

  it("writes a tokenizer.json that means the same to other tools", () => {
    const other = new HuggingFaceTokenizer("written", bytes.files);
    assert.equal(other.vocabSize, 256);
    for (const value of CORPUS) {
      assert.deepEqual([...other.encode(value)], [...bytes.encode(value)]);
      assert.equal(other.decode(bytes.encode(value)), value);
    }
  });
});

describe("byte-pair tokenizer", () => {
  const bpe = trainBpe(CORPUS, 320);

  it("has the asked number of tokens, the end of text last", () => {
    assert.equal(bpe.vocabSize, 320);
    assert.equal(bpe.endOfText, 319);
    assert.equal(bpe.decode([319]), "<|endoftext|>");
  });

  it("decodes what it encodes, whole and streamed", () => {
    fc.assert(
      fc.property(text, (value) => {
        const ids = bpe.encode(value);
        assert.equal(bpe.decode(ids), value);
        assert.equal(streamed(bpe, ids), value);
      }),
    );
  });

  it("streams any ids as it decodes them", () => {
    const id = fc.oneof(fc.integer({ min: 0, max: 318 }), fc.integer({ min: 128, max: 255 }));
    fc.assert(
      fc.property(fc.array(id, { maxLength: 30 }), (ids) => {
        assert.equal(streamed(bpe, ids), bpe.decode(ids));
      }),
    );
    assert.equal(bpe.decode([104, 9999, 105]), "h\uFFFDi");
  });

  it("merges the most frequent pair first, ties by the smaller ids", () => {
    const { model } = JSON.parse(trainBpe(["ab ab ab cd cd", "ef"], 260).files.get("tokenizer.json")!);
    assert.deepEqual(model.merges, [
      ["a", "b"],
      ["Ġ", "c"],
      ["Ġ", "ab"],
    ]);
  });

  it("is the same for the same text, and shorter than bytes", () => {
    assert.equal(trainBpe(CORPUS, 320).files.get("tokenizer.json"), bpe.files.get("tokenizer.json"));
    assert.ok(bpe.encode(CORPUS[0]!).length < 0.7 * CORPUS[0]!.length);
  });

  it("encodes long texts in pieces as it would at once", () => {
    const line = "the cat sat on the mat\n\n  the hat\n";
    const once = bpe.encode(line.repeat(10));
    const long = bpe.encode(line.repeat(9_000));
    assert.equal(long.length, once.length * 900);
    assert.deepEqual(long.slice(-once.length), once);
  });

  it("says how many tokens a short text allows", () => {
    assert.throws(
      () => trainBpe(["ab"], 400),
      (error) => error instanceof DataError && error.details.possible === 258,
    );
    assert.throws(() => trainBpe(["ab"], 256), DataError);
  });

  it("names the first invalid byte", () => {
    const raw = Uint8Array.of(65, 0xc3, 0xa4, 66, 0xff, 67);
    assert.throws(
      () => bpe.encodeBytes(raw, "a.txt"),
      (error) => error instanceof DataError && error.details.position === 4 && /a\.txt: byte 4/.test(error.message),
    );
  });
});

describe("tokenizer files", () => {
  let folder: string;
  before(() => {
    folder = mkdtempSync(path.join(os.tmpdir(), "meshwork-"));
  });
  after(() => rm(folder, { recursive: true }));

  it("read back as they were written", async () => {
    assert.equal(await findTokenizer(folder), undefined);
    const bpe = trainBpe(CORPUS, 300);
    for (const [name, content] of bpe.files) writeFileSync(path.join(folder, name), content);
    for (const found of [await findTokenizer(folder), await loadTokenizer(path.join(folder, "tokenizer.json"))]) {
      assert.deepEqual(found?.encode(CORPUS[1]!), bpe.encode(CORPUS[1]!));
      assert.equal(found?.endOfText, 299);
      assert.deepEqual(found?.files, bpe.files);
    }
    for (const [name, content] of new ByteTokenizer().files) writeFileSync(path.join(folder, name), content);
    assert.ok((await loadTokenizer(folder)) instanceof ByteTokenizer);
  });

  it("are refused with a reason when missing or malformed", async () => {
    await assert.rejects(loadTokenizer(path.join(folder, "none.json")), /none\.json: no such file/);
    const bad = path.join(folder, "bad.json");
    for (const content of ["{", "[]", "{}", '{"model":{"type":"BPE"}}', '{"model":{"type":"Nonesuch","vocab":{}}}']) {
      writeFileSync(bad, content);
      await assert.rejects(loadTokenizer(bad), DataError);
    }
  });
});

describe("--tokenizer", () => {
  it("is byte, bpe:N or a path", () => {
    assert.deepEqual(parseTokenizerChoice("byte"), { kind: "byte" });
    assert.deepEqual(parseTokenizerChoice("bpe:512"), { kind: "bpe", vocabSize: 512 });
    assert.deepEqual(parseTokenizerChoice("models/bpe.json"), { kind: "file", path: "models/bpe.json" });
    for (const bad of ["bpe", "bpe:", "bpe:256", "bpe:1e9", "bpe:-5"])
      assert.throws(() => parseTokenizerChoice(bad), DataError);
  });
});
