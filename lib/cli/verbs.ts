// The verbs of the command: dispatch, help, exit codes.
import { AbortedError, MeshworkError, UsageError } from "../core/errors.ts";
import { nearest } from "../core/nearest.ts";
import { doctorFlags } from "./doctor-flags.ts";
import { type FlagTable, type FlagValues, type GivenFlag, helpText, parseFlags } from "./flags.ts";
import { generateFlags } from "./generate-flags.ts";
import { inspectFlags } from "./inspect-flags.ts";
import { type CliIo, EXIT } from "./io.ts";
import { trainFlags } from "./train-flags.ts";
import { version } from "./version.ts";

interface Verb {
  readonly summary: string;
  readonly help: string;
  run(args: readonly string[], io: CliIo): Promise<number>;
}

/** A verb's code; `given` holds the flags as they were given. */
type RunVerb<Table extends FlagTable> = (
  options: FlagValues<Table>,
  io: CliIo,
  given: ReadonlyMap<string, GivenFlag>,
) => Promise<number>;

interface VerbParts<Table extends FlagTable> {
  readonly name: string;
  readonly summary: string;
  readonly examples: readonly string[];
  readonly flags: Table;
  /** Loads the verb's code only when it runs. */
  readonly load: () => Promise<RunVerb<Table>>;
}

function verb<Table extends FlagTable>(parts: VerbParts<Table>): Verb {
  const help = helpText(parts.name, parts.summary, parts.examples, parts.flags);
  return {
    summary: parts.summary,
    help,
    async run(args, io) {
      const { values, given, help: asked } = parseFlags(parts.flags, args);
      if (asked) {
        io.stdout.write(help);
        return EXIT.done;
      }
      const run = await parts.load();
      return run(values, io, given);
    },
  };
}

const VERBS: ReadonlyMap<string, Verb> = new Map([
  [
    "train",
    verb({
      name: "train",
      summary: "trains a model, on one device or split over a mesh of them",
      examples: ["meshwork train --data notes/*.txt --steps 200", "meshwork train --mesh pp=2,tp=2 --device cpu"],
      flags: trainFlags,
      load: async () => (await import("./train.ts")).runTrain,
    }),
  ],
  [
    "generate",
    verb({
      name: "generate",
      summary: "continues a text with a trained model",
      examples: ['meshwork generate --model runs/my-run/model --prompt "The " --max-tokens 50'],
      flags: generateFlags,
      load: async () => (await import("./generate.ts")).runGenerate,
    }),
  ],
  [
    "inspect",
    verb({
      name: "inspect",
      summary: "lists what is in a checkpoint or a file of weights, or how two of them differ",
      examples: ["meshwork inspect runs/my-run", "meshwork inspect runs/a/checkpoints/step-00000100 runs/b"],
      flags: inspectFlags,
      load: async () => (await import("./inspect.ts")).runInspect,
    }),
  ],
  [
    "doctor",
    verb({
      name: "doctor",
      summary: "tells what of this machine meshwork can use, what not, and how to mend it",
      examples: ["meshwork doctor"],
      flags: doctorFlags,
      load: async () => (await import("./doctor.ts")).runDoctor,
    }),
  ],
]);

function overview(): string {
  const verbs = [...VERBS].map(([name, { summary }]) => `  ${name.padEnd(10)}${summary}`);
  return `meshwork: neural networks in Node.js, trained and run over a mesh of devices

Usage: meshwork VERB [flags]

Verbs:
${verbs.join("\n")}

Example:
  meshwork train --mesh pp=2,tp=2

meshwork VERB --help lists a verb's flags; meshwork --version prints the version.
`;
}

/**
 * Runs a command line without the program's name. Errors are written to standard error.
 * @returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted
 */
export async function runCommand(args: readonly string[], io: CliIo): Promise<number> {
  const [name, ...rest] = args;
  try {
    if (name === undefined) {
      io.stderr.write(overview());
      return EXIT.usage;
    }
    if (name === "--help" || name === "-h" || name === "help") return help(rest, io);
    if (name === "--version") {
      io.stdout.write(`${await version()}\n`);
      return EXIT.done;
    }
    return await find(name).run(rest, io);
  } catch (error) {
    return report(name ?? "", error, io);
  }
}

function help([name]: readonly string[], io: CliIo): number {
  io.stdout.write(name === undefined ? overview() : find(name).help);
  return EXIT.done;
}

function find(name: string): Verb {
  const found = VERBS.get(name);
  if (found !== undefined) return found;
  const close = nearest(name, VERBS.keys());
  throw new UsageError(`unknown verb "${name}"; the nearest is "${close}"`, {
    details: { verb: name, nearest: close },
  });
}

/** The error that came first, where closing things afterwards failed too. */
function firstError(error: unknown): unknown {
  const both = error instanceof Error && error.name === "SuppressedError" && "suppressed" in error;
  return both ? firstError(error.suppressed) : error;
}

function report(name: string, thrown: unknown, io: CliIo): number {
  const error = firstError(thrown);
  const prefix = VERBS.has(name) ? `meshwork ${name}` : "meshwork";
  if (error instanceof UsageError) {
    io.stderr.write(`${prefix}: ${error.message}\nSee ${prefix} --help.\n`);
    return EXIT.usage;
  }
  if (io.signal.aborted && (error instanceof AbortedError || isAbort(error))) {
    io.stderr.write(`${prefix}: interrupted\n`);
    return EXIT.interrupted;
  }
  if (error instanceof MeshworkError) io.stderr.write(`${prefix}: ${error.message} (${error.code})\n`);
  else io.stderr.write(`${prefix}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  return EXIT.failed;
}

function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}
