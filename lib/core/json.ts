// JSON objects as they come from files: nothing is known of their values yet.

/** An object of a JSON file. */
export type JsonObject = Readonly<Record<string, unknown>>;

/** True for objects that are no arrays. */
export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
