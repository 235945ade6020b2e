// The flags of the benchmarks that take some: what to measure, from the command line.
import { parseArgs } from "node:util";
import { type DType, dtypes } from "../lib/core/dtype.ts";
import type { DeviceKind } from "../lib/runtime/engine.ts";

/** What to measure; each list is undefined where the benchmark's own is to be taken. */
export interface Selection {
  readonly device: DeviceKind;
  /** Names of kernels or collectives. */
  readonly ops: readonly string[] | undefined;
  readonly types: readonly DType[] | undefined;
  /** In bytes. */
  readonly sizes: readonly number[] | undefined;
  readonly ranks: readonly number[] | undefined;
}

/** Taken where nothing is said. */
export const everything: Selection = {
  device: "cpu",
  ops: undefined,
  types: undefined,
  sizes: undefined,
  ranks: undefined,
};

/** How to write them. */
export const flagsHelp =
  "kernels and collectives take --ops a,b --types f32,bf16 --sizes 64K,16M --ranks 2,4 --device cpu|cuda";

/**
 * Splits a command line into the parts asked for and what to measure of them. Throws Error for what it does not know.
 */
export function parseCommand(args: readonly string[]): { parts: string[]; selection: Selection } {
  const options = { ops: {}, types: {}, sizes: {}, ranks: {}, device: {} };
  const { values, positionals } = parseArgs({
    args: [...args],
    allowPositionals: true,
    options: Object.fromEntries(Object.keys(options).map((name) => [name, { type: "string" as const }])),
  });
  const list = (name: keyof typeof options): string[] | undefined => {
    const text = values[name];
    return typeof text === "string" ? text.split(",").map((word) => word.trim()) : undefined;
  };
  const selection = {
    device: deviceOf(list("device")?.[0] ?? "cpu"),
    ops: list("ops"),
    types: list("types")?.map(typeOf),
    sizes: list("sizes")?.map(bytesOf),
    ranks: list("ranks")?.map(bytesOf),
  };
  return { parts: positionals, selection };
}

function deviceOf(word: string): DeviceKind {
  if (word === "cpu" || word === "cuda") return word;
  throw new Error(`--device is cpu or cuda, not ${word}`);
}

function typeOf(word: string): DType {
  const found = dtypes.find((dtype) => dtype === word);
  if (found === undefined) throw new Error(`--types: ${word} is not one of ${dtypes.join(", ")}`);
  return found;
}

const units: Readonly<Record<string, number>> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

/** "4K" is 4096. */
function bytesOf(word: string): number {
  const [, digits, unit] = /^([0-9]+)([KMG]?)$/.exec(word) ?? [];
  const bytes = Number(digits) * (units[unit ?? ""] ?? Number.NaN);
  if (Number.isSafeInteger(bytes) && bytes > 0) return bytes;
  throw new Error(`a size is a whole number such as 4096, 64K or 16M, not "${word}"`);
}

/** Those of a list that were asked for. Throws Error for one that is not there. */
export function chosen<T extends string>(all: readonly T[], asked: readonly string[] | undefined, what: string): T[] {
  const unknown = asked?.find((name) => !all.some((known) => known === name));
  if (unknown !== undefined) throw new Error(`no ${what} is named ${unknown}; there are ${all.join(", ")}`);
  return all.filter((name) => asked?.includes(name) ?? true);
}
