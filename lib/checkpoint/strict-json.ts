// JSON from files that are not trusted: duplicate keys and inexact integers are refused, depth is bounded.

/** A JSON value; objects are maps, so that no key has a meaning of its own. */
export type StrictJson = string | number | boolean | null | StrictJson[] | Map<string, StrictJson>;

const MAX_DEPTH = 8;
const TOKEN = /[\t\n\r ]*(?:([[\]{},:])|("(?:[^"\\]|\\.)*")|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(true|false|null))/suy;

/** Parses a text. @throws {SyntaxError} with the reason and position. */
export function parseStrictJson(text: string): StrictJson {
  const scanner = new Scanner(text);
  const value = parseValue(scanner, 0);
  scanner.end();
  return value;
}

class Scanner {
  readonly #text: string;
  readonly #pattern = new RegExp(TOKEN);
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  fail(reason: string): never {
    throw new SyntaxError(`${reason} at position ${this.#at}`);
  }

  next(): string {
    this.#pattern.lastIndex = this.#at;
    const found = this.#pattern.exec(this.#text);
    if (found === null) this.fail("a JSON value or sign is expected");
    this.#at = this.#pattern.lastIndex;
    return found[0].trimStart();
  }

  end(): void {
    if (!/^[\t\n\r ]*$/.test(this.#text.slice(this.#at))) this.fail("text after the value");
  }
}

function parseValue(scanner: Scanner, depth: number, token = scanner.next()): StrictJson {
  if (depth > MAX_DEPTH) scanner.fail("nested too deeply");
  if (token === "{") return parseObject(scanner, depth);
  if (token === "[") return parseArray(scanner, depth);
  if (token.startsWith('"')) return parseText(scanner, token);
  if (/^[\]},:]/.test(token)) return scanner.fail(`"${token}" where a value is expected,`);
  if (!/^-?\d/.test(token)) return token === "null" ? null : token === "true";
  const value = Number(token);
  if (/^-?0\d/.test(token)) scanner.fail(`the number ${token}`);
  if (/^-?\d+$/.test(token) && !Number.isSafeInteger(value)) scanner.fail(`the integer ${token}, which is too large,`);
  return value;
}

function parseText(scanner: Scanner, token: string): string {
  try {
    return String(JSON.parse(token));
  } catch {
    return scanner.fail("a malformed text");
  }
}

function parseObject(scanner: Scanner, depth: number): Map<string, StrictJson> {
  const object = new Map<string, StrictJson>();
  let token = scanner.next();
  if (token === "}") return object;
  for (;;) {
    if (!token.startsWith('"')) scanner.fail("a key is expected");
    const key = parseText(scanner, token);
    if (object.has(key)) scanner.fail(`the key ${JSON.stringify(key)} for the second time`);
    if (scanner.next() !== ":") scanner.fail('":" is expected');
    object.set(key, parseValue(scanner, depth + 1));
    token = scanner.next();
    if (token === "}") return object;
    if (token !== ",") scanner.fail('"," or "}" is expected');
    token = scanner.next();
  }
}

function parseArray(scanner: Scanner, depth: number): StrictJson[] {
  const array: StrictJson[] = [];
  let token = scanner.next();
  if (token === "]") return array;
  for (;;) {
    array.push(parseValue(scanner, depth + 1, token));
    token = scanner.next();
    if (token === "]") return array;
    if (token !== ",") scanner.fail('"," or "]" is expected');
    token = scanner.next();
  }
}
