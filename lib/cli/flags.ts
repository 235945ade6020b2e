// Declarative flag tables: typed values from the command line and --config files, refusals in the user's terms, help.
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { systemReason, UsageError } from "../core/errors.ts";
import { nearest } from "../core/nearest.ts";

/** One flag. Its name is its key in the table, camelCase; `batchSize` is written `--batch-size`. */
export interface Flag<T> {
  /** `switch` takes no value, `one` takes one, `maybe` one or none, `many` takes one or more and may be repeated. */
  readonly kind: "switch" | "one" | "maybe" | "many";
  readonly help: string;
  /** Of `many`: takes the words before the first flag too. */
  readonly positional?: boolean;
  /** Placeholder of the value in the help. */
  readonly value: string;
  /** What a value must be, for messages: `a whole number from 1 on`. */
  readonly expected: string;
  readonly defaultValue: T;
  /** The default in the help; none is shown when empty. */
  readonly defaultText: string;
  /** The value of words on the command line; undefined when they are not as expected. May throw UsageError. */
  parse(words: readonly string[]): T | undefined;
  /** The value of a JSON value; undefined when it is not as expected. May throw UsageError. */
  fromJson(value: unknown): T | undefined;
}

/** Flags by camelCase name. */
export type FlagTable = Readonly<Record<string, Flag<unknown>>>;

/** The values that a table's flags have. */
export type FlagValues<Table extends FlagTable> = {
  readonly [Name in keyof Table]: Table[Name] extends Flag<infer T> ? T : never;
};

/** A flag as it was given: words of the command line, or a value of a config file. */
export type GivenFlag = { readonly words: readonly string[] } | { readonly json: unknown };

/** What a command line said. */
export interface ParsedFlags<Table extends FlagTable> {
  readonly values: FlagValues<Table>;
  /** The flags given on the line or in the config file, by name. */
  readonly given: ReadonlyMap<string, GivenFlag>;
  /** --help was asked for; nothing else was checked. */
  readonly help: boolean;
}

interface Texts<D> {
  readonly help: string;
  readonly value?: string;
  readonly default?: D;
  /** Words for a default that is not fixed: `the preset's`. */
  readonly defaultText?: string;
}

interface Kind<T> {
  readonly kind: Flag<T>["kind"];
  readonly value: string;
  readonly expected: string;
  readonly parse: (words: readonly string[]) => T | undefined;
  readonly fromJson: (value: unknown) => T | undefined;
}

function flag<T, D>(kind: Kind<T>, texts: Texts<D>): Flag<T | D> {
  const fixed = texts.default === undefined ? "" : String(texts.default);
  return {
    ...kind,
    help: texts.help,
    value: texts.value ?? kind.value,
    defaultValue: texts.default as D,
    defaultText: texts.defaultText ?? (kind.kind === "switch" ? "" : fixed),
  };
}

/** A flag of any type whose value is one word. */
export function valueFlag<T, D extends T | undefined = undefined>(
  texts: Texts<D> & {
    readonly expected: string;
    readonly value: string;
    readonly parse: (word: string) => T | undefined;
    readonly fromJson: (value: unknown) => T | undefined;
  },
): Flag<T | D> {
  const { expected, value, fromJson } = texts;
  return flag<T, D>({ kind: "one", value, expected, fromJson, parse: ([word]) => texts.parse(word!) }, texts);
}

/** A flag without a value. */
export function switchFlag(texts: { readonly help: string }): Flag<boolean> {
  const fromJson = (value: unknown) => (typeof value === "boolean" ? value : undefined);
  const kind: Kind<boolean> = { kind: "switch", value: "", expected: "true or false", fromJson, parse: () => true };
  return flag(kind, { ...texts, default: false });
}

/** A text that is not empty. */
export function textFlag<D extends string | undefined = undefined>(
  texts: Texts<D> & { readonly mayBeEmpty?: boolean },
): Flag<string | D> {
  const parse = (word: string) => (word === "" && texts.mayBeEmpty !== true ? undefined : word);
  const fromJson = (value: unknown) => (typeof value === "string" ? parse(value) : undefined);
  return valueFlag<string, D>({
    ...texts,
    value: texts.value ?? "TEXT",
    expected: "a text that is not empty",
    parse,
    fromJson,
  });
}

/** A text, or `true` for the flag without one. */
export function maybeTextFlag(texts: Texts<undefined>): Flag<string | true | undefined> {
  const parse = ([word]: readonly string[]) => (word === undefined ? true : word === "" ? undefined : word);
  const fromJson = (value: unknown) =>
    value === true || (typeof value === "string" && value !== "") ? value : undefined;
  const kind = {
    kind: "maybe",
    value: texts.value ?? "[TEXT]",
    expected: "a text or nothing",
    parse,
    fromJson,
  } as const;
  return flag<string | true, undefined>(kind, texts);
}

/** One or more texts; repeated flags add up. */
export function textsFlag(texts: Texts<undefined>): Flag<readonly string[] | undefined> {
  const parse = (words: readonly string[]) => (words.length === 0 || words.includes("") ? undefined : words);
  const isTexts = (value: unknown): value is string[] =>
    Array.isArray(value) && value.every((v) => typeof v === "string");
  const fromJson = (value: unknown) =>
    typeof value === "string" ? parse([value]) : isTexts(value) ? parse(value) : undefined;
  const kind = {
    kind: "many",
    value: texts.value ?? "TEXT...",
    expected: "one or more texts",
    parse,
    fromJson,
  } as const;
  return flag<readonly string[], undefined>(kind, texts);
}

/** One or more texts that need no flag before them. */
export function wordsFlag(texts: Texts<undefined>): Flag<readonly string[] | undefined> {
  return { ...textsFlag(texts), positional: true };
}

interface Range {
  readonly min?: number;
  readonly max?: number;
  /** The value must be above min, or below max: neither bound itself is allowed. */
  readonly above?: number;
  readonly below?: number;
}

function inRange(value: number, range: Range): boolean {
  const { min = -Infinity, max = Infinity, above = -Infinity, below = Infinity } = range;
  return Number.isFinite(value) && value >= min && value <= max && value > above && value < below;
}

function describeRange(what: string, { min, max, above, below }: Range): string {
  const from = min !== undefined ? ` from ${min}` : above !== undefined ? ` above ${above}` : "";
  const to = max !== undefined ? `to ${max}` : below !== undefined ? `to below ${below}` : "on";
  return min === undefined && to === "on" ? `${what}${from}` : `${what}${from} ${to}`;
}

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** A whole number within a range. */
export function integerFlag<D extends number | undefined = undefined>(
  texts: Texts<D> & { readonly min: number; readonly max?: number },
): Flag<number | D> {
  const check = (value: number) => (Number.isSafeInteger(value) && inRange(value, texts) ? value : undefined);
  return valueFlag<number, D>({
    ...texts,
    value: texts.value ?? "N",
    expected: describeRange("a whole number", texts),
    parse: (word) => (/^[+-]?\d+$/.test(word) ? check(Number(word)) : undefined),
    fromJson: (value) => (typeof value === "number" ? check(value) : undefined),
  });
}

/** A number within a range. */
export function numberFlag<D extends number | undefined = undefined>(texts: Texts<D> & Range): Flag<number | D> {
  const check = (value: number) => (inRange(value, texts) ? value : undefined);
  return valueFlag<number, D>({
    ...texts,
    value: texts.value ?? "X",
    expected: describeRange("a number", texts),
    parse: (word) => (NUMBER.test(word) ? check(Number(word)) : undefined),
    fromJson: (value) => (typeof value === "number" ? check(value) : undefined),
  });
}

/** One of a few words. */
export function choiceFlag<const W extends string, D extends W | undefined = undefined>(
  choices: readonly W[],
  texts: Texts<D>,
): Flag<W | D> {
  const parse = (word: string) => {
    const found = choices.find((choice) => choice === word);
    if (found !== undefined) return found;
    throw new UsageError(`"${word}" is not one of ${choices.join(", ")}; the nearest is "${nearest(word, choices)}"`);
  };
  const fromJson = (value: unknown) => (typeof value === "string" ? parse(value) : undefined);
  return valueFlag<W, D>({
    ...texts,
    value: texts.value ?? choices.join("|"),
    expected: `one of ${choices.join(", ")}`,
    parse,
    fromJson,
  });
}

/** `batchSize` to `batch-size`. */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** Numbers given as `a,b` on the line or as a list in JSON; undefined when there are not `count` finite ones. */
export function parseNumbers(value: unknown, count?: number): number[] | undefined {
  const parts = typeof value === "string" ? value.split(",").map((part) => part.trim()) : value;
  if (!Array.isArray(parts) || (count !== undefined && parts.length !== count)) return undefined;
  const numbers = parts.map((part: unknown) => {
    if (typeof part === "number") return part;
    return typeof part === "string" && NUMBER.test(part) ? Number(part) : Number.NaN;
  });
  return numbers.every(Number.isFinite) ? numbers : undefined;
}

/**
 * Reads a command line: `--flag value`, `--flag=value`, and `--config FILE`, whose values stand where the line has
 * none.
 * @throws {UsageError} for unknown flags and keys, with the nearest known one, and values that are not as expected.
 */
export function parseFlags<Table extends FlagTable>(table: Table, args: readonly string[]): ParsedFlags<Table> {
  const words = readLine(table, args);
  if (words.help) return { values: valuesOf(table, new Map()), given: new Map(), help: true };
  const given = words.config === undefined ? new Map<string, GivenFlag>() : readConfig(table, words.config);
  const where = (name: string): string => (words.byName.has(name) ? "" : `--config ${words.config}, `);
  for (const [name, list] of words.byName) given.set(name, { words: list });
  return { values: valuesOf(table, readGiven(table, given, where)), given, help: false };
}

/**
 * The values that flags have where those given before (to a run that is resumed) stand, unless they are given again.
 * @throws {UsageError} as parseFlags() does; `source` names where the earlier ones come from.
 */
export function parseAgain<Table extends FlagTable>(
  table: Table,
  earlier: ReadonlyMap<string, GivenFlag>,
  now: ReadonlyMap<string, GivenFlag>,
  source: string,
): FlagValues<Table> {
  for (const name of earlier.keys()) {
    if (!Object.hasOwn(table, name)) throw new UsageError(`${source}: unknown flag "${name}"`);
  }
  const where = (name: string): string => (now.has(name) ? "" : `${source}, `);
  return valuesOf(table, readGiven(table, new Map([...earlier, ...now]), where));
}

function readGiven(
  table: FlagTable,
  given: ReadonlyMap<string, GivenFlag>,
  where: (name: string) => string,
): Map<string, unknown> {
  const values = new Map<string, unknown>();
  for (const [name, flag] of given) {
    const known = table[name]!;
    if ("words" in flag) {
      const shown = flag.words.join(" ");
      values.set(
        name,
        checked(`${where(name)}--${kebab(name)}`, known, shown, () => known.parse(flag.words)),
      );
    } else {
      const shown = typeof flag.json === "string" ? flag.json : JSON.stringify(flag.json);
      values.set(
        name,
        checked(`${where(name)}"${name}"`, known, shown, () => known.fromJson(flag.json)),
      );
    }
  }
  return values;
}

function valuesOf<Table extends FlagTable>(table: Table, values: ReadonlyMap<string, unknown>): FlagValues<Table> {
  const entries = Object.entries(table).map(([name, known]) => [
    name,
    values.has(name) ? values.get(name) : known.defaultValue,
  ]);
  return Object.fromEntries(entries);
}

function checked(where: string, known: Flag<unknown>, shown: string, read: () => unknown): unknown {
  let value: unknown;
  try {
    value = read();
  } catch (cause) {
    if (!(cause instanceof UsageError)) throw cause;
    throw new UsageError(`${where}: ${cause.message}`, { cause });
  }
  if (value === undefined) throw new UsageError(`${where}: ${known.expected} is expected, not "${shown}"`);
  return value;
}

interface Line {
  readonly byName: Map<string, string[]>;
  config: string | undefined;
  help: boolean;
}

function readLine(table: FlagTable, args: readonly string[]): Line {
  const names = new Map(Object.keys(table).map((name) => [kebab(name), name]));
  const isSwitch = (flagName: string) => flagName === "help" || table[names.get(flagName) ?? ""]?.kind === "switch";
  const known = [...names.keys(), "config", "help"];
  const options = Object.fromEntries(
    known.map((name) => [name, isSwitch(name) ? { type: "boolean" as const } : { type: "string" as const }]),
  );
  const help = { ...options.help, type: "boolean" as const, short: "h" };
  const parsed = {
    args: args.map((arg, i) => (isBare(table, names, arg, args[i + 1]) ? `${arg}=` : arg)),
    options: { ...options, help },
    strict: false,
    allowPositionals: true,
    tokens: true,
  } as const;
  const { tokens } = parseArgs(parsed);
  const line: Line = { byName: new Map(), config: undefined, help: false };
  let list: string[] | undefined;
  for (const token of tokens) {
    if (token.kind === "positional") list ??= positionals(table, line);
    if (token.kind === "positional" && list !== undefined) list.push(token.value);
    else if (token.kind === "positional")
      throw new UsageError(`"${token.value}" was not expected here: flags begin with --`);
    else if (token.kind === "option") list = takeOption(line, token, known, names, table);
    else throw new UsageError("-- was not expected here");
  }
  return line;
}

/** Where words without a flag go; undefined for verbs that take none. */
function positionals(table: FlagTable, line: Line): string[] | undefined {
  const name = Object.keys(table).find((key) => table[key]!.positional === true);
  if (name === undefined) return undefined;
  const list = line.byName.get(name) ?? [];
  line.byName.set(name, list);
  return list;
}

/** True for a flag whose value may be left out, and is. */
function isBare(table: FlagTable, names: ReadonlyMap<string, string>, arg: string, next: string | undefined): boolean {
  const maybe = arg.startsWith("--") && table[names.get(arg.slice(2)) ?? ""]?.kind === "maybe";
  return maybe && (next === undefined || next.startsWith("--"));
}

interface OptionToken {
  readonly name: string;
  readonly rawName: string;
  readonly value: string | undefined;
  readonly inlineValue: boolean | undefined;
}

/** Notes one flag of the line; returns the list that following words belong to, for flags of many values. */
function takeOption(
  line: Line,
  token: OptionToken,
  known: readonly string[],
  names: ReadonlyMap<string, string>,
  table: FlagTable,
): string[] | undefined {
  const { name, rawName, value } = token;
  if (!known.includes(name) || rawName === `-${name}`) throw unknownFlag(rawName, known);
  const kind = name === "help" ? "switch" : name === "config" ? "one" : table[names.get(name)!]!.kind;
  if (kind === "switch") {
    if (value !== undefined) throw new UsageError(`${rawName} takes no value`);
    if (name === "help") line.help = true;
    else line.byName.set(names.get(name)!, []);
    return undefined;
  }
  if (kind === "maybe") {
    line.byName.set(names.get(name)!, value === "" || value === undefined ? [] : [value]);
    return undefined;
  }
  // A word that begins with -- is the next flag; a value that does so is written after an equals sign.
  if (value === undefined || (token.inlineValue !== true && value.startsWith("--"))) {
    throw new UsageError(`${rawName} needs a value`);
  }
  if (name === "config") line.config = value;
  else if (kind === "one") line.byName.set(names.get(name)!, [value]);
  else {
    const list = line.byName.get(names.get(name)!) ?? [];
    list.push(value);
    line.byName.set(names.get(name)!, list);
    return list;
  }
  return undefined;
}

function unknownFlag(rawName: string, known: readonly string[]): UsageError {
  const close = nearest(rawName.replace(/^-+/, ""), known);
  return new UsageError(`unknown flag ${rawName}; the nearest is --${close}`, {
    details: { flag: rawName, nearest: close },
  });
}

function readConfig(table: FlagTable, file: string): Map<string, GivenFlag> {
  let parsed: unknown;
  try {
    parsed = JSON.parse(readFileSync(file, "utf8"));
  } catch (cause) {
    const reason = cause instanceof SyntaxError ? `not valid JSON: ${cause.message}` : systemReason(cause);
    throw new UsageError(`--config ${file}: ${reason}`, { cause });
  }
  if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) {
    throw new UsageError(`--config ${file}: a JSON object of flags is expected`);
  }
  const given = new Map<string, GivenFlag>();
  for (const [key, json] of Object.entries(parsed)) {
    if (!Object.hasOwn(table, key)) {
      const close = nearest(key, Object.keys(table));
      const details = { key, nearest: close };
      throw new UsageError(`--config ${file}: unknown key "${key}"; the nearest is "${close}"`, { details });
    }
    given.set(key, { json });
  }
  return given;
}

/** Help for a verb: what it does, an example, and its flags with their defaults. */
export function helpText(verb: string, summary: string, examples: readonly string[], table: FlagTable): string {
  const entries = Object.entries(table).map(([name, { value, help, defaultText, positional }]) => ({
    left: positional === true ? value : `--${kebab(name)}${value === "" ? "" : ` ${value}`}`,
    right: defaultText === "" ? help : `${help} [${defaultText}]`,
  }));
  entries.push({
    left: "--config FILE",
    right: "JSON file with any of these flags by camelCase name; flags on the line win",
  });
  entries.push({ left: "--help", right: "this text" });
  const rows = entries.flatMap(({ left, right }) => row(left, right));
  const example = `${examples.length > 1 ? "Examples" : "Example"}:\n${examples.map((line) => `  ${line}`).join("\n")}`;
  return `meshwork ${verb}: ${summary}\n\n${example}\n\nFlags:\n${rows.join("\n")}\n`;
}

const LEFT = 30;
const WIDTH = 110;

function row(left: string, right: string): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of right.split(" ")) {
    if (line !== "" && LEFT + line.length + 1 + word.length > WIDTH) {
      lines.push(line);
      line = word;
    } else line = line === "" ? word : `${line} ${word}`;
  }
  lines.push(line);
  const fits = left.length + 4 <= LEFT;
  const rows = lines.map((text, index) => `${(index === 0 && fits ? `  ${left}` : "").padEnd(LEFT)}${text}`);
  return fits ? rows : [`  ${left}`, ...rows];
}
