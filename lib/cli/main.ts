#!/usr/bin/env node
// The meshwork command.
import { EXIT } from "./io.ts";
import { runCommand } from "./verbs.ts";

const interrupt = new AbortController();

// The first interrupt lets the verb save its state; the second ends at once.
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    if (interrupt.signal.aborted) process.exit(EXIT.interrupted);
    interrupt.abort();
  });
}

// A reader that went away, as `| head` does, is no reason for a stack trace.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(EXIT.failed);
  throw error;
});

const { stdout, stderr } = process;
process.exitCode = await runCommand(process.argv.slice(2), { stdout, stderr, signal: interrupt.signal });
