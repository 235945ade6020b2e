// Hand-encoded programs for tests of the runtime: a few lines that say what docs/PROGRAM.md says.
import { opTableHash } from "../../lib/ops/hash.ts";
import { type KernelName, kernels } from "../../lib/ops/kernels.ts";

/** The parts of a program, as words; everything may be left out. */
export interface ProgramParts {
  readonly arenaBytes?: number;
  readonly buffers?: readonly number[];
  /** [dtype code, dims, strides?, offset?] */
  readonly views?: readonly ViewParts[];
  readonly floats?: readonly number[];
  readonly table?: readonly number[];
  readonly groups?: readonly (readonly number[])[];
  readonly labels?: readonly string[];
  readonly segments?: readonly (readonly number[])[];
  readonly actions?: readonly (readonly number[])[];
}

/** A view: row-major unless strides are given. */
export interface ViewParts {
  readonly dtype: number;
  readonly dims: readonly number[];
  readonly strides?: readonly number[];
  readonly offset?: number;
}

/** A number as two words, low first. */
export function wide(n: number): [number, number] {
  return [n | 0, Math.floor(n / 2 ** 32)];
}

/** Words of a whole program. */
export function program(parts: ProgramParts): Int32Array {
  const { arenaBytes = 0, buffers = [], views = [], floats = [], table = [], groups = [], labels = [] } = parts;
  const { segments = [], actions = [] } = parts;
  const flatActions = actions.flat();
  return Int32Array.from([
    ...[0x4d575052, 1, opTableHash | 0, ...wide(arenaBytes)],
    ...[buffers.length, ...buffers.flatMap(wide)],
    ...[views.length, ...views.flatMap(viewWords)],
    ...[floats.length, ...new Int32Array(Float64Array.from(floats).buffer)],
    ...[table.length, ...table],
    ...[groups.length, ...groups.flatMap((g) => [g.length, ...g])],
    ...[labels.length, ...labels.flatMap(labelWords)],
    ...[segments.length, ...segments.flatMap((s) => [s.length, ...s])],
    ...[flatActions.length, ...flatActions],
  ]);
}

/** Words of an instruction; an operand is [region, offset / 64, view]. */
export function instruction(
  name: KernelName,
  inputs: readonly (readonly number[])[],
  outputs: readonly (readonly number[])[],
  attrs: readonly number[] = [],
  label = -1,
): number[] {
  const code = kernels.findIndex((k) => k.name === name) + 1;
  return [code, inputs.length, outputs.length, attrs.length, label, ...inputs.flat(), ...outputs.flat(), ...attrs];
}

function viewWords({ dtype, dims, strides, offset = 0 }: ViewParts): number[] {
  const rowMajor = dims.map((_, d) => dims.slice(d + 1).reduce((a, b) => a * b, 1));
  return [dtype, dims.length, ...wide(offset), ...dims.flatMap(wide), ...(strides ?? rowMajor).flatMap(wide)];
}

function labelWords(label: string): number[] {
  const bytes = Buffer.from(label);
  const padded = Buffer.alloc(Math.ceil(bytes.length / 4) * 4);
  bytes.copy(padded);
  return [bytes.length, ...Array.from({ length: padded.length / 4 }, (_, i) => padded.readInt32LE(4 * i))];
}

/** Words of the actions. */
export const actions = {
  run: (segment: number, slots: readonly number[] = [0, 0, 0], table = 0): number[] => [1, segment, ...slots, table],
  transfer: (...items: readonly (readonly number[])[]): number[] => [2, items.length, ...items.flat()],
  wait: (send: number): number[] => [3, send],
  feed: (staging: number, offset: number, bytes: number): number[] => [4, ...wide(staging), offset, ...wide(bytes)],
  fetch: (region: number, offset: number, staging: number, bytes: number): number[] => [
    5,
    region,
    offset,
    ...wide(staging),
    ...wide(bytes),
  ],
};

/** Programs that copy 64 KiB many times over: long enough to be interrupted. */
export function longPrograms(devices: number): Int32Array[] {
  const words = program({
    arenaBytes: 2 ** 17,
    views: [{ dtype: 0, dims: [2 ** 14] }],
    segments: [instruction("copy", [[0, 0, 0]], [[0, 2 ** 10, 0]])],
    actions: Array.from({ length: 30_000 }, () => actions.run(0)),
  });
  return Array.from({ length: devices }, () => words);
}
