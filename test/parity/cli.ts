// Runs the command in this process and collects its JSON lines.
import { runCommand } from "../../lib/cli/verbs.ts";

/** One JSON line. */
export type Line = Readonly<Record<string, unknown>> & { readonly type: string };

/** What a run of the command left. */
export interface CommandResult {
  readonly code: number;
  readonly lines: readonly Line[];
  readonly stderr: string;
}

/** Runs `meshwork ...args --log json`. */
export async function command(
  args: readonly string[],
  signal: AbortSignal = new AbortController().signal,
): Promise<CommandResult> {
  let stdout = "";
  let stderr = "";
  const code = await runCommand([...args, "--log", "json"], {
    stdout: { write: (text: string) => (stdout += text) },
    stderr: { write: (text: string) => (stderr += text) },
    signal,
  });
  const lines = stdout
    .split("\n")
    .filter((l) => l !== "")
    .map((l): Line => JSON.parse(l));
  return { code, lines, stderr };
}
