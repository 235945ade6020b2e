// Damaged checkpoints are refused with file and tensor named, clean ones never. All drawn by seed: a failure repeats.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import os from "node:os";
import path from "node:path";
import { openCheckpoint } from "../../lib/checkpoint/load.ts";
import { saveCheckpoint } from "../../lib/checkpoint/save.ts";
import { stateOf } from "../../lib/checkpoint/state.ts";
import { StoredCheckpoint } from "../../lib/checkpoint/stored.ts";
import { CheckpointError } from "../../lib/core/errors.ts";
import { uniform } from "../../lib/core/philox.ts";
import { Mesh } from "../../lib/tensor/mesh.ts";

const long = process.env.MESHWORK_LONG === "1";
const [damaged, clean] = long ? [2000, 500] : [400, 100];

/** Whole numbers below a bound, drawn by seed. */
class Draw {
  #count = 0;
  readonly #seed: number;
  constructor(seed: number) {
    this.#seed = seed;
  }
  below(n: number): number {
    return Math.floor(uniform(this.#seed, 77, this.#count++) * n);
  }
}

/** What is damaged: where, and whether a tensor can be told. */
interface Damage {
  readonly file: string;
  /** The tensors one of which must be named; undefined where the damage is about none. */
  readonly tensors?: readonly string[] | undefined;
}

type Harm = (folder: string, draw: Draw) => Damage;

function shards(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith(".safetensors"))
    .sort();
}

/** Bytes of a shard's header, and its tensors' places in the file. */
function headerOf(bytes: Buffer): { end: number; tensors: { name: string; begin: number; end: number }[] } {
  const end = 8 + Number(bytes.readBigUInt64LE(0));
  const header: Record<string, { data_offsets: [number, number] }> = JSON.parse(bytes.toString("utf8", 8, end));
  const tensors = Object.entries(header).flatMap(([name, entry]) =>
    name === "__metadata__" ? [] : [{ name, begin: end + entry.data_offsets[0], end: end + entry.data_offsets[1] }],
  );
  return { end, tensors };
}

function namesIn(file: string): string[] {
  return headerOf(readFileSync(file)).tensors.map(({ name }) => name);
}

/** Changes bytes of one shard at a place drawn; the tensor there must be named, all of them where it is the header. */
function changeBytes(folder: string, draw: Draw, change: (bytes: Buffer, at: number) => number): Damage {
  const list = shards(folder);
  const file = path.join(folder, list[draw.below(list.length)]!);
  const bytes = readFileSync(file);
  const before = Buffer.from(bytes);
  const { end, tensors } = headerOf(before);
  const at = draw.below(bytes.length);
  const length = change(bytes, at);
  // What had those bytes already is not damaged.
  if (bytes.equals(before)) bytes[at]! ^= 1;
  writeFileSync(file, bytes);
  const hit = tensors.filter((t) => t.begin < at + length && t.end > at && at >= end).map(({ name }) => name);
  return { file, tensors: hit.length > 0 ? hit : tensors.map(({ name }) => name) };
}

const harms: Readonly<Record<string, Harm>> = {
  "a flipped bit": (folder, draw) =>
    changeBytes(folder, draw, (bytes, at) => {
      bytes[at]! ^= 1 << draw.below(8);
      return 1;
    }),
  "a zeroed page": (folder, draw) =>
    changeBytes(folder, draw, (bytes, at) => {
      const length = Math.min(512, bytes.length - at);
      bytes.fill(0, at, at + length);
      return length;
    }),
  truncation: (folder, draw) => {
    const list = shards(folder);
    const file = path.join(folder, list[draw.below(list.length)]!);
    const bytes = readFileSync(file);
    const { tensors } = headerOf(bytes);
    truncateSync(file, draw.below(bytes.length));
    return { file, tensors: tensors.map(({ name }) => name) };
  },
  "bytes behind the end": (folder, draw) => {
    const list = shards(folder);
    const file = path.join(folder, list[draw.below(list.length)]!);
    const names = namesIn(file);
    writeFileSync(file, Buffer.alloc(1 + draw.below(100)), { flag: "a" });
    return { file, tensors: names };
  },
  "swapped shards": (folder, draw) => {
    const list = shards(folder);
    const first = draw.below(list.length);
    const [a, b] = [list[first]!, list[(first + 1 + draw.below(list.length - 1)) % list.length]!];
    const [fileA, fileB] = [path.join(folder, a), path.join(folder, b)];
    const names = [...namesIn(fileA), ...namesIn(fileB)];
    renameSync(fileA, `${fileA}.x`);
    renameSync(fileB, fileA);
    renameSync(`${fileA}.x`, fileB);
    return { file: folder, tensors: names };
  },
  "a missing shard": (folder, draw) => {
    const list = shards(folder);
    const file = path.join(folder, list[draw.below(list.length)]!);
    const names = namesIn(file);
    rmSync(file);
    return { file, tensors: names };
  },
  "an extra shard": (folder, draw) => {
    const list = shards(folder);
    const from = path.join(folder, list[draw.below(list.length)]!);
    const file = path.join(folder, `device-9${draw.below(1000)}.safetensors`);
    copyFileSync(from, file);
    return { file, tensors: namesIn(file) };
  },
  "an edited manifest": (folder, draw) => editManifest(folder, draw),
  "a cut manifest": (folder, draw) => {
    const file = path.join(folder, "manifest.json");
    truncateSync(file, draw.below(readFileSync(file).length));
    return { file };
  },
  "a manifest edited with its digest": (folder, draw) => {
    const damage = editManifest(folder, draw);
    const file = path.join(folder, "manifest.json");
    const body = readFileSync(file).subarray(0, -78);
    const digest = createHash("sha256").update(body).digest("hex");
    writeFileSync(file, Buffer.concat([body, Buffer.from(`"digest":"${digest}"\n}\n`)]));
    return { ...damage, file: folder };
  },
};

/** Changes one tensor's entry: a size, a dtype, its file, its checksum, its cuts. */
function editManifest(folder: string, draw: Draw): Damage {
  const file = path.join(folder, "manifest.json");
  const lines = readFileSync(file, "utf8").split("\n");
  const entries = lines.flatMap((line, i) => (line.startsWith(`{"name"`) && line.includes(`"role"`) ? [i] : []));
  const at = entries[draw.below(entries.length)]!;
  const last = lines[at]!.endsWith("],") ? "]," : lines[at]!.endsWith(",") ? "," : "";
  const text = lines[at]!.slice(0, lines[at]!.lastIndexOf("}") + 1);
  const tensor = JSON.parse(text);
  const { name } = tensor;
  const edits: (() => void)[] = [
    () => (tensor.shape[draw.below(tensor.shape.length)] += 1 + draw.below(3)),
    () => (tensor.dtype = tensor.dtype === "F32" ? "I32" : "F32"),
    () => (tensor.files[draw.below(tensor.files.length)] += 1),
    () => (tensor.crc32c[0] = `${tensor.crc32c[0].slice(0, 7)}${tensor.crc32c[0].endsWith("0") ? "1" : "0"}`),
    () => (tensor.cuts[0] = tensor.cuts[0].length > 0 ? [] : [1]),
    () => (tensor.name = `${name}x`),
  ];
  edits[draw.below(edits.length)]!();
  const end = lines[at]!.slice(lines[at]!.lastIndexOf("}") + 1);
  assert.ok(end === last || end === "],");
  lines[at] = `${JSON.stringify(tensor)}${end}`;
  writeFileSync(file, lines.join("\n"));
  return { file, tensors: [name, tensor.name, ...namesOf(lines, entries)] };
}

function namesOf(lines: readonly string[], entries: readonly number[]): string[] {
  return entries.map((i) => JSON.parse(lines[i]!.slice(0, lines[i]!.lastIndexOf("}") + 1)).name);
}

describe("damaged checkpoints", function () {
  this.timeout(600_000);
  let scratch = "";
  const whole: string[] = [];
  const older: string[] = [];

  before(async () => {
    scratch = mkdtempSync(path.join(os.tmpdir(), "meshwork-damage-"));
    const meshes = [{ tp: 2 }, { tp: 3, dp: 2 }, { fsdp: 4 }];
    for (const [i, axes] of meshes.entries()) {
      await using mesh = await Mesh.open<string>({ device: "cpu", axes, threads: 1 });
      const [axis] = Object.keys(axes);
      const values = (n: number, first: number): Float32Array =>
        Float32Array.from({ length: n }, (_, k) => first + k / 7);
      const tensors = {
        "h.0.weight": mesh.fromData(values(13 * 40, 1), [13, 40], { spec: [axis!] }),
        "h.0.bias": mesh.fromData(values(40, 900), [40], {}),
        "optimizer.m.h.0.weight": mesh.fromData(values(13 * 40, 5), [13, 40], { spec: [null, axis!] }),
        head: mesh.fromData(values(7, -4), [7], { spec: [axis!] }),
        extra: mesh.fromData(values(600, 31), [600], {}),
      };
      for (const step of [1, 2]) {
        const record = { data: { position: 6 * step }, note: "kept" };
        const { path: folder } = await saveCheckpoint(
          path.join(scratch, `m${i}`),
          stateOf(mesh, tensors, { step, record }),
        );
        (step === 1 ? older : whole).push(folder);
        mesh.store.write(stateOf(mesh, tensors).tensors[3]!.id, values(7, 70));
      }
    }
  });
  after(() => rmSync(scratch, { recursive: true }));

  /** A copy of a good checkpoint, under a name of its own. */
  function copyOf(i: number): string {
    const folder = path.join(scratch, "step-00000002");
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder);
    for (const name of readdirSync(whole[i]!)) copyFileSync(path.join(whole[i]!, name), path.join(folder, name));
    return folder;
  }

  const stale: Harm = (folder, draw) => {
    const list = shards(folder);
    const name = list[draw.below(list.length)]!;
    const from = older[whole.findIndex((w) => shards(w).length === list.length)]!;
    copyFileSync(path.join(from, name), path.join(folder, name));
    return { file: path.join(folder, name), tensors: namesIn(path.join(folder, name)) };
  };

  it(`are refused, all ${damaged} of them`, async () => {
    const kinds = Object.entries({ ...harms, "a stale shard": stale });
    for (let n = 0; n < damaged; n++) {
      const draw = new Draw(n);
      const [kind, harm] = kinds[n % kinds.length]!;
      const folder = copyOf(draw.below(whole.length));
      const { file, tensors } = harm(folder, draw);
      const where = `${n}: ${kind} in ${file}`;
      const error = await openCheckpoint(folder).then(
        (checkpoint) => {
          checkpoint[Symbol.dispose]();
          return undefined;
        },
        (cause: unknown) => cause,
      );
      assert.ok(error instanceof CheckpointError, `${where}: ${error === undefined ? "not refused" : String(error)}`);
      const named = String(error.details.file);
      assert.ok(
        named.startsWith(folder) && (file === folder || named === file),
        `${where}: ${named}, ${error.message}`,
      );
      if (tensors === undefined) continue;
      assert.ok(tensors.includes(String(error.details.tensor)), `${where}: ${error.details.tensor}, ${error.message}`);
      assert.ok(error.message.includes(`"${error.details.tensor}"`), `${where}: ${error.message}`);
    }
  });

  it(`are told from clean ones, all ${clean} of which are taken`, async () => {
    for (let n = 0; n < clean; n++) {
      using checkpoint = await openCheckpoint(copyOf(n % whole.length));
      assert.ok(checkpoint instanceof StoredCheckpoint && checkpoint.tensors.length === 5);
    }
  });
});
