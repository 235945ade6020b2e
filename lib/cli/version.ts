// The package's own version.
import { readFile } from "node:fs/promises";

/** The version in package.json. */
export async function version(): Promise<string> {
  const manifest: unknown = JSON.parse(await readFile(new URL("../../package.json", import.meta.url), "utf8"));
  const has = typeof manifest === "object" && manifest !== null && "version" in manifest;
  return has ? String(manifest.version) : "unknown";
}
