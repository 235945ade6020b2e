// The names that meshwork exports, values and types, as text. Run it to renew the committed list:
// npx tsx test/api-surface.ts > test/api-surface.txt
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const lib = fileURLToPath(new URL("../lib/", import.meta.url));

/** One name a line, sorted: `type Mesh`, `value nn.GPT2`. */
export function apiSurface(): string[] {
  return namesOf(path.join(lib, "index.ts"), "").sort();
}

function namesOf(file: string, prefix: string): string[] {
  const source = readFileSync(file, "utf8").replace(/\/\/.*$/gm, "");
  const found: string[] = [];
  const statement = /export\s+(?:\*\s+as\s+(\w+)|(type\s+)?\{([^}]*)\})\s+from\s+"([^"]+)";/g;
  const rest = source.replace(statement, (_, namespace?: string, type?: string, names?: string, from?: string) => {
    if (namespace !== undefined) found.push(...namesOf(path.resolve(path.dirname(file), from!), `${namespace}.`));
    else found.push(...listed(names!, type !== undefined).map((name) => name.replace(" ", ` ${prefix}`)));
    return "";
  });
  if (rest.trim() !== "") throw new Error(`${path.relative(lib, file)} has more than re-exports: ${rest.trim()}`);
  return found;
}

function listed(names: string, allTypes: boolean): string[] {
  return names
    .split(",")
    .map((name) => name.trim())
    .filter((name) => name !== "")
    .map((name) => {
      const isType = allTypes || name.startsWith("type ");
      const own = name.replace(/^type\s+/, "");
      return `${isType ? "type" : "value"} ${own.split(/\s+as\s+/).at(-1)!}`;
    });
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.log(apiSurface().join("\n"));
}
