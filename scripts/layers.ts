// Checks that imports in lib/ and includes in native/ point down the layers and never go round in a circle.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

/** The layers of one source tree. */
export interface LayerRules {
  /** The tree's folder, relative to the repository. */
  readonly folder: string;
  readonly language: "ts" | "c++";
  /**
   * Top to bottom. Folders of one row may import each other, but not in a circle; the longest path that fits counts.
   */
  readonly layers: readonly (readonly string[])[];
  /** Downward imports that are not wanted all the same. */
  readonly forbidden: readonly (readonly [from: string, to: string])[];
}

export const layerRules: readonly LayerRules[] = [
  {
    folder: "lib",
    language: "ts",
    layers: [
      ["index.ts"],
      ["cli"],
      ["train", "data", "checkpoint", "nn", "optim", "evaluate", "plan"],
      ["tensor"],
      ["compile"],
      ["passes"],
      ["runtime"],
      ["ops"],
      ["ir"],
      ["core"],
    ],
    forbidden: [["passes", "runtime"]],
  },
  {
    folder: "native",
    language: "c++",
    layers: [
      ["test"],
      ["addon"],
      ["runtime"],
      ["collective", "io"],
      ["backend"],
      // Threads that kernels and collectives divide their work among.
      ["runtime/pool.h", "runtime/pool.cc"],
      ["core"],
    ],
    forbidden: [
      ["collective", "io"],
      ["io", "collective"],
      ["io", "backend"],
    ],
  },
];

/** One import of a file of the same tree; paths are relative to the repository. */
interface Import {
  readonly from: string;
  readonly line: number;
  readonly to: string;
  /** Needs the file as soon as this one is loaded; not so types and import(), which may close a circle. */
  readonly eager: boolean;
}

/** What is wrong in the repository at `root`, one line each with file and line; empty when all is well. */
export function checkLayers(root: string, rules: readonly LayerRules[] = layerRules): string[] {
  return rules.flatMap((rule) => {
    const files = sourceFiles(root, rule);
    const imports = files.flatMap((file) => importsOf(root, file, rule));
    const direction = imports.flatMap((i) => directionProblem(i, rule));
    const strangers = files
      .filter((f) => layerOf(f, rule) === undefined)
      .map((f) => `${f}:1: is in no layer of scripts/layers.ts`);
    return [...strangers, ...direction, ...fileCycles(imports), ...folderCycles(imports, rule)];
  });
}

function sourceFiles(root: string, { folder, language }: LayerRules): string[] {
  const extensions = language === "ts" ? /\.[cm]?tsx?$/ : /\.(h|hpp|cuh|inc|c|cc|cpp|cu)$/;
  const absolute = path.join(root, folder);
  if (!existsSync(absolute)) return [];
  return readdirSync(absolute, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && extensions.test(entry.name))
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)).split(path.sep).join("/"))
    .sort();
}

function importsOf(root: string, from: string, { folder, language }: LayerRules): Import[] {
  const source = readFileSync(path.join(root, from), "utf8");
  const found = language === "ts" ? typeScriptImports(source) : includes(source);
  return found.flatMap(({ specifier, end, eager }) => {
    const to = resolve(root, from, specifier, folder, language);
    return to === undefined ? [] : [{ from, line: source.slice(0, end).split("\n").length, to, eager }];
  });
}

interface Specifier {
  readonly specifier: string;
  /** Where the import ends. */
  readonly end: number;
  readonly eager: boolean;
}

/** What passes over comments and texts and stops at import, export from, import() and import types. */
const token = new RegExp(
  [
    /\/\/.*|\/\*[\s\S]*?\*\//,
    /(?<types>\b(?:import|export)\s+type\b[^"'`;=]*?)?\b(?:from|import)\s*(?<call>\(\s*)?(?<quote>["'])(?<specifier>[^"'\n]+)\k<quote>/,
    /"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\[\s\S]|[^`\\])*`/,
  ]
    .map((r) => r.source)
    .join("|"),
  "g",
);

function typeScriptImports(source: string): Specifier[] {
  return [...source.matchAll(token)].flatMap((match) => {
    const { types, call, specifier } = match.groups ?? {};
    const eager = types === undefined && call === undefined;
    return specifier === undefined ? [] : [{ specifier, end: match.index + match[0].length, eager }];
  });
}

function includes(source: string): Specifier[] {
  return [...source.matchAll(/^[ \t]*#[ \t]*include[ \t]+"([^"\n]+)"/gm)].map((match) => ({
    specifier: match[1]!,
    end: match.index + match[0].length,
    eager: true,
  }));
}

/** The file of the tree that is meant; undefined for packages and for what is generated. */
function resolve(
  root: string,
  from: string,
  specifier: string,
  folder: string,
  language: LayerRules["language"],
): string | undefined {
  const beside = path.posix.join(path.posix.dirname(from), specifier);
  if (language === "ts") return specifier.startsWith(".") && beside.startsWith(`${folder}/`) ? beside : undefined;
  return [beside, path.posix.join(folder, specifier)].find((file) => existsSync(path.join(root, file)));
}

/** The layer's index from the top, and the name under which the file is in it. */
function layerOf(
  file: string,
  { folder, layers }: LayerRules,
): { readonly rank: number; readonly name: string } | undefined {
  const inside = file.slice(folder.length + 1);
  const all = layers.flatMap((names, rank) => names.map((name) => ({ rank, name })));
  return all
    .filter(({ name }) => inside === name || inside.startsWith(`${name}/`))
    .sort((a, b) => b.name.length - a.name.length)[0];
}

function directionProblem({ from, line, to }: Import, rule: LayerRules): string[] {
  const [a, b] = [layerOf(from, rule), layerOf(to, rule)];
  if (!a || !b) return [];
  if (b.rank < a.rank)
    return [`${from}:${line}: imports ${to}, which is in a higher layer (${b.name} is above ${a.name})`];
  const unwanted = rule.forbidden.some(([x, y]) => x === a.name && y === b.name);
  return unwanted ? [`${from}:${line}: imports ${to}; ${a.name} may not see ${b.name}`] : [];
}

function fileCycles(imports: readonly Import[]): string[] {
  const eager = imports.filter((i) => i.eager && i.from !== i.to);
  return cycles(eager.map((i) => ({ from: i.from, to: i.to, where: `${i.from}:${i.line}` })));
}

/** Folders of one layer may use each other, but only one way. */
function folderCycles(imports: readonly Import[], rule: LayerRules): string[] {
  const between = imports.flatMap(({ from, to, line }) => {
    const [a, b] = [layerOf(from, rule), layerOf(to, rule)];
    if (!a || !b || a.rank !== b.rank || a.name === b.name) return [];
    return [{ from: `${rule.folder}/${a.name}`, to: `${rule.folder}/${b.name}`, where: `${from}:${line}` }];
  });
  return cycles(between);
}

interface Edge {
  readonly from: string;
  readonly to: string;
  readonly where: string;
}

/** One report for each edge that closes a circle in a depth-first walk. */
function cycles(edges: readonly Edge[]): string[] {
  const outgoing = new Map<string, Edge[]>();
  for (const edge of edges) outgoing.set(edge.from, [...(outgoing.get(edge.from) ?? []), edge]);
  const done = new Set<string>();
  const problems = new Set<string>();
  for (const start of outgoing.keys()) {
    const trail: { node: string; next: number }[] = done.has(start) ? [] : [{ node: start, next: 0 }];
    for (let top = trail.at(-1); top !== undefined; top = trail.at(-1)) {
      const edge = outgoing.get(top.node)?.[top.next++];
      if (!edge) {
        done.add(top.node);
        trail.pop();
        continue;
      }
      const at = trail.findIndex(({ node }) => node === edge.to);
      if (at !== -1)
        problems.add(`${edge.where}: closes a circle: ${[...trail.slice(at).map((t) => t.node), edge.to].join(" > ")}`);
      else if (!done.has(edge.to)) trail.push({ node: edge.to, next: 0 });
    }
  }
  return [...problems];
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const problems = checkLayers(path.resolve(import.meta.dirname, ".."));
  for (const problem of problems) console.error(problem);
  if (problems.length > 0) process.exitCode = 1;
}
