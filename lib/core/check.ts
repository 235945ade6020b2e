// Checks of values at the API's entries: what TypeScript's types rule out, JavaScript callers still pass.
import { describe } from "./describe.ts";
import { type DType, dtypes } from "./dtype.ts";
import { ConfigError, DTypeError, ShapeError } from "./errors.ts";
import type { Shape } from "./shape.ts";

/** Throws ConfigError for what is no object. */
export function expectObject(what: string, value: unknown): void {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return;
  throw new ConfigError(`${what} must be an object, not ${describe(value)}`);
}

/** Throws ConfigError for what is no list. */
export function expectList(what: string, value: unknown): asserts value is readonly unknown[] {
  if (!Array.isArray(value)) throw new ConfigError(`${what} must be a list, not ${describe(value)}`);
}

/** Throws ConfigError for what cannot be iterated over. */
export function expectIterable<T>(what: string, value: Iterable<T>): Iterable<T> {
  if (typeof value === "object" && value !== null && Symbol.iterator in value) return value;
  throw new ConfigError(`${what} must be a list, not ${describe(value)}`);
}

/** Throws ConfigError for what is no text with something in it: names, paths. */
export function expectText(what: string, value: unknown): asserts value is string {
  if (typeof value === "string" && value !== "") return;
  throw new ConfigError(`${what} must be a text that is not empty, not ${describe(value)}`);
}

/** Throws ConfigError for what is no function. */
export function expectFunction(what: string, value: unknown): void {
  if (typeof value !== "function") throw new ConfigError(`${what} must be a function, not ${describe(value)}`);
}

/** Throws ConfigError for what is neither an AbortSignal nor undefined. */
export function expectSignal(value: unknown): void {
  if (value === undefined || value instanceof AbortSignal) return;
  throw new ConfigError(`signal must be an AbortSignal, not ${describe(value)}`);
}

/** Throws ConfigError for what is no whole number within bounds. */
export function expectInteger(what: string, value: unknown, min: number, max = Number.MAX_SAFE_INTEGER): void {
  if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) return;
  const range = max === Number.MAX_SAFE_INTEGER ? `from ${min} on` : `from ${min} to ${max}`;
  throw new ConfigError(`${what} must be a whole number ${range}, not ${describe(value)}`);
}

/** Throws ConfigError for what is no finite number from 0 on. */
export function expectNotNegative(what: string, value: unknown): void {
  if (typeof value === "number" && value >= 0 && value < Number.POSITIVE_INFINITY) return;
  throw new ConfigError(`${what} must be a number that is not negative, not ${describe(value)}`);
}

/** Throws ShapeError for what is no list of whole numbers from `min` on. */
export function expectSizes(what: string, value: unknown, min = 0): asserts value is Shape {
  if (!Array.isArray(value)) throw new ShapeError(`${what} must be a list of sizes, not ${describe(value)}`);
  const bad = value.findIndex((n: unknown) => !(typeof n === "number" && Number.isSafeInteger(n) && n >= min));
  if (bad < 0) return;
  throw new ShapeError(`${what}: size ${bad} is ${describe(value[bad])}; sizes are whole numbers, not negative`);
}

/** Throws DTypeError for what is no element type. */
export function expectDType(what: string, value: unknown): asserts value is DType {
  if (dtypes.some((known) => known === value)) return;
  throw new DTypeError(`${what} must be one of ${dtypes.join(", ")}, not ${describe(value)}`);
}
