// The composition matrix as text: the part of docs/LAYOUTS.md between its marks, written and read again.
import { readFileSync } from "node:fs";
import { type Cell, cellText, type Letter, letters, models, names, type Outcome, ways } from "./matrix.ts";
import { tolerance } from "./trained.ts";

/** The document that the tables are in. */
export const document = new URL("../../docs/LAYOUTS.md", import.meta.url);

const marks = ["<!-- matrix: written by `npm run layouts` -->\n", "<!-- end of matrix -->\n"] as const;

/** What came of each model in each cell, by the cell's name. */
export type Outcomes = ReadonlyMap<string, ReadonlyMap<Letter, Outcome>>;

/** The part of a document that the tables make up, and what is around it. Throws where the marks are missing. */
function partsOf(text: string): readonly [before: string, tables: string, after: string] {
  const [begin, end] = marks.map((mark) => text.indexOf(mark)) as [number, number];
  if (begin < 0 || end < begin) throw new Error(`${document.pathname} lacks the marks of the matrix`);
  const from = begin + marks[0].length;
  return [text.slice(0, from), text.slice(from, end), text.slice(end)];
}

/** The tables as they stand in the document. */
export function documentedTables(): string {
  return partsOf(readFileSync(document, "utf8"))[1];
}

/** The document with these outcomes in it. */
export function documentWith(outcomes: Outcomes): string {
  const [before, , after] = partsOf(readFileSync(document, "utf8"));
  return before + tablesText(outcomes) + after;
}

/** The tables of all outcomes. */
export function tablesText(outcomes: Outcomes): string {
  const notes: string[] = [];
  const cellOf = (...cell: readonly string[]): string => {
    if (new Set(cell.map((name) => ways[name]!.axis)).size < cell.length) return "";
    const key = cellText(cell.toSorted((a, b) => names.indexOf(a) - names.indexOf(b)));
    const found = outcomes.get(key);
    if (!found) throw new Error(`the matrix lacks ${key}`);
    return [...found].map(([letter, reason]) => letter + (reason === undefined ? "" : noteOf(reason, notes))).join(" ");
  };
  const schedules = names.filter((name) => ways[name]!.axis === "pp");
  const others = names.filter((name) => !schedules.includes(name));
  const tables = [
    table("", names, names, (row, column) => {
      if (names.indexOf(column) > names.indexOf(row)) return "";
      return row === column ? cellOf(row) : cellOf(row, column);
    }),
    table("pipelines", pairsOf(others).map(cellText), schedules, (row, column) => cellOf(...row.split(", "), column)),
    table("others", pairsOf(others).map(cellText), others, (row, column) => {
      const pair = row.split(", ");
      return names.indexOf(column) < names.indexOf(pair[1]!) ? "" : cellOf(...pair, column);
    }),
    table("all axes", ["dp, zero 3, tp-sp, cp", "dp, zero 3, tp-sp, cp, ep"], schedules, (row, column) =>
      cellOf(...row.split(", "), column),
    ),
  ];
  return [introduction(), ...tables, ...notes.map((note, i) => `(${i + 1}) refused: ${note}\n`)].join("\n");
}

function introduction(): string {
  const legend = letters.map((letter) => `${letter} ${models[letter].name}`).join(", ");
  return `Letters name the models that train alike: ${legend}. Differences are at most ${tolerance.loss} for losses,
${tolerance.gradNorm} for gradient norms and weights, relative to the value, or to 0.01 where it is smaller. A number in
brackets after a letter is the reason why the layout is refused, below. Empty cells are two ways of one axis, or stand
elsewhere.
`;
}

function pairsOf(list: readonly string[]): Cell[] {
  return list.flatMap((a, i) => list.slice(i + 1).flatMap((b) => (ways[a]!.axis === ways[b]!.axis ? [] : [[a, b]])));
}

function noteOf(reason: string, notes: string[]): string {
  if (!notes.includes(reason)) notes.push(reason);
  return `(${notes.indexOf(reason) + 1})`;
}

/** A table; rows and columns in which nothing stands are left out. */
function table(
  corner: string,
  rows: readonly string[],
  columns: readonly string[],
  cell: (row: string, column: string) => string,
): string {
  const texts = rows.map((row) => columns.map((column) => cell(row, column)));
  const used = columns.map((_, i) => i).filter((i) => texts.some((row) => row[i] !== ""));
  const line = (cells: readonly string[]): string => `| ${cells.join(" | ")} |\n`;
  return [
    line([corner, ...used.map((i) => columns[i]!)]),
    `${"|---".repeat(used.length + 1)}|\n`,
    ...rows.flatMap((row, r) =>
      texts[r]!.some((text) => text !== "") ? [line([row, ...used.map((i) => texts[r]![i]!)])] : [],
    ),
  ].join("");
}

/** What tables say, read from their text. */
export function readTables(text: string): Outcomes {
  const reasons = new Map([...text.matchAll(/^\((\d+)\) refused: (.*)$/gm)].map(([, n, reason]) => [n, reason]));
  const outcomes = new Map<string, Map<Letter, Outcome>>();
  let columns: readonly string[] = [];
  for (const line of text.split("\n").filter((l) => l.startsWith("| "))) {
    const [row, ...cells] = line
      .slice(2, -2)
      .split(" | ")
      .map((part) => part.trim()) as [string, ...string[]];
    if (!names.includes(row.split(", ")[0]!)) {
      columns = cells;
      continue;
    }
    cells.forEach((content, i) => {
      const found = [...content.matchAll(/([A-Z])(?:\((\d+)\))?/g)].map(([, letter, note]): [Letter, Outcome] => [
        letter as Letter,
        note === undefined ? undefined : reasons.get(note),
      ]);
      const cell = new Set([...row.split(", "), columns[i]!]);
      const key = cellText([...cell].toSorted((a, b) => names.indexOf(a) - names.indexOf(b)));
      if (found.length > 0) outcomes.set(key, new Map(found));
    });
  }
  return outcomes;
}
