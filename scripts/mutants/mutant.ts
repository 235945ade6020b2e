// What a seeded mistake is: one text of the sources in place of another.

/** The kinds of mistakes that are seeded. */
export type MutantClass =
  | "missing reduction"
  | "wrong mean factor"
  | "padding counted"
  | "stale weight"
  | "dropped microbatch"
  | "lost sample"
  | "tied weight counted twice"
  | "gradient counted twice"
  | "gradient lost"
  | "swapped all-to-all count"
  | "send before its time"
  | "received too late"
  | "wrong peer"
  | "missed wait"
  | "memory reused too early"
  | "clip by a local norm"
  | "wrong offset of a slice"
  | "other random numbers"
  | "ring blocks off by one"
  | "zig-zag order"
  | "optimizer state"
  | "experts"
  | "recomputed otherwise"
  | "checkpoint slice"
  | "a proof that overlooks";

/** A mistake to be found by the tests. */
export interface Mutant {
  /** Unique; what is wrong, in a few words. */
  readonly name: string;
  readonly class: MutantClass;
  /** File of the mistake, from the repository's root. */
  readonly file: string;
  /** A text that occurs exactly once in the file. */
  readonly find: string;
  readonly replace: string;
}

/** A mutant is of native code: the addon is to be built anew. */
export function isNative({ file }: Mutant): boolean {
  return file.startsWith("native/");
}

/** The file's text with the mistake. Throws Error unless the text to replace occurs exactly once. */
export function mutated(mutant: Mutant, text: string): string {
  const parts = text.split(mutant.find);
  if (parts.length === 2) return parts.join(mutant.replace);
  throw new Error(
    `mutant "${mutant.name}": its text occurs ${parts.length - 1} times in ${mutant.file}: ${mutant.find}`,
  );
}
