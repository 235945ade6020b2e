// Seeds mistakes one at a time in a throwaway copy and runs a fixed list of tests until the first failure: each must be
// found. `npm run mutants [-- texts in names]`; their rows in the table of docs/TESTING.md are written anew.
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { isNative, type Mutant } from "./mutants/mutant.ts";
import { mutants, testFiles } from "./mutants/list.ts";
import { type TestRun, Workplace } from "./mutants/workplace.ts";

/** Most seconds that the tests may take for one mutant. */
const mostSeconds = 90;

const root = path.resolve(import.meta.dirname, "..");
const document = path.join(root, "docs/TESTING.md");
const [begin, end] = ["<!-- mutants: written by `npm run mutants` -->", "<!-- end of mutants -->"];

interface Found {
  readonly mutant: Mutant;
  readonly run: TestRun;
}

function text(seconds: number): string {
  return seconds.toFixed(1);
}

function rowText({ mutant, run }: Found): string {
  const file = mutant.file.replace(/^lib\//, "");
  const by = run.failure ?? "**not found**";
  return `| ${mutant.name} | ${mutant.class} | \`${file}\` | ${by} | ${text(run.seconds)} |`;
}

/**
 * The document with these rows in its table, in the order of the list; rows of others stay, but for mistakes that are
 * gone.
 */
function documentWith(found: readonly Found[]): string {
  const whole = readFileSync(document, "utf8");
  const [from, to] = [whole.indexOf(begin) + begin.length, whole.indexOf(end)];
  if (from < begin.length || to < from) throw new Error(`${document} has no place for the table`);
  const known = whole.slice(from, to).split("\n");
  const rows = mutants.flatMap((mutant) => {
    const own = found.find((f) => f.mutant === mutant);
    return own ? [rowText(own)] : known.filter((row) => row.startsWith(`| ${mutant.name} | ${mutant.class} |`));
  });
  const table = ["| mistake | class | in | found by | s |", "|---|---|---|---|---|", ...rows].join("\n");
  return `${whole.slice(0, from)}\n${table}\n${whole.slice(to)}`;
}

/** Runs the tests on the sources with a mistake. */
async function attempt(place: Workplace, mutant: Mutant): Promise<Found> {
  using _ = place.seed(mutant);
  if (isNative(mutant)) await place.build();
  return { mutant, run: await place.test(testFiles) };
}

/** True where all tests pass without any mistake. */
async function isSound(place: Workplace): Promise<boolean> {
  const { failure, seconds, output } = await place.test(testFiles);
  if (failure === undefined) console.log(`without any mistake all tests pass, in ${text(seconds)} s`);
  else console.error(`without any mistake: ${failure}\n${output}`);
  return failure === undefined;
}

/** Tries mutants in turn; returns the number of those that are not found. */
async function attemptAll(place: Workplace, chosen: readonly Mutant[]): Promise<number> {
  const found: Found[] = [];
  for (const mutant of chosen) {
    const one = await attempt(place, mutant);
    found.push(one);
    const { failure, seconds, broken, output } = one.run;
    console.log(`${mutant.name}: ${failure ?? "NOT FOUND"}, ${text(seconds)} s`);
    if (broken) console.error(`no test was run: ${output}`);
    if (seconds > mostSeconds) console.error(`that is more than ${mostSeconds} s`);
  }
  writeFileSync(document, documentWith(found));
  return found.filter(({ run }) => run.failure === undefined || run.broken).length;
}

const words = process.argv.slice(2);
const chosen = mutants.filter(({ name }) => words.length === 0 || words.some((word) => name.includes(word)));
using place = new Workplace(root);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    place[Symbol.dispose]();
    process.exit(130);
  });
}
if (chosen.some(isNative)) await place.build();
if (words.length > 0 || (await isSound(place))) {
  const survived = await attemptAll(place, chosen);
  console.log(`${chosen.length - survived} of ${chosen.length} mistakes were found`);
  if (survived > 0) process.exitCode = 1;
} else process.exitCode = 1;
