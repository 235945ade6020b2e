// Checks that no line of the sources is longer than 120 columns, but for texts and patterns that cannot be cut.
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const folders = ["lib", "native", "test", "bench", "scripts", "examples"];
const extensions = /\.([cm]?ts|mjs|h|cc|cu|cuh|inc)$/;
const longest = 120;

/** Lines that are too long, `file:line: length` each. */
export function longLines(root: string): string[] {
  const files = folders.flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && extensions.test(entry.name))
      .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name))),
  );
  return files.flatMap((file) =>
    readFileSync(path.join(root, file), "utf8")
      .split("\n")
      .flatMap((line, i) =>
        tooLong(line) ? [`${file}:${i + 1}: ${line.length} columns; ${longest} are the most`] : [],
      ),
  );
}

function tooLong(line: string): boolean {
  if (line.length <= longest) return false;
  const text = line.trim();
  if (/^(\/\/|\/?\*)/.test(text)) return true;
  // A text that begins here and goes on in the next lines can be cut; one that ends here cannot.
  if (/^["'`/]/.test(text)) return false;
  return !/["'`]/.test(text) || (text.match(/`/g)?.length ?? 0) % 2 === 1;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const problems = longLines(path.resolve(import.meta.dirname, ".."));
  for (const problem of problems) console.error(problem);
  if (problems.length > 0) process.exitCode = 1;
}
