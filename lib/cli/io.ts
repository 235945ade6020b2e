// What a verb sees of the process: two outputs and the interrupt.

/** Somewhere to write text: a standard stream, or a string in tests. */
export interface Output {
  write(text: string): unknown;
  /** True on a terminal. */
  readonly isTTY?: boolean | undefined;
  /** Width of the terminal. */
  readonly columns?: number | undefined;
}

/** A verb's surroundings. */
export interface CliIo {
  /** Results. */
  readonly stdout: Output;
  /** Progress and errors, for people. */
  readonly stderr: Output;
  /** Aborted on the first interrupt: the verb saves its state and returns 130. */
  readonly signal: AbortSignal;
}

/** Exit codes of every verb. */
export const EXIT = { done: 0, failed: 1, usage: 2, interrupted: 130 } as const;
