// What the main thread and the worker that compiles send each other: plain data.
import { type ErrorData, errorFromData, errorToData, MeshworkError } from "../core/errors.ts";
import type { Graph } from "../ir/graph.ts";
import { MeshLayout } from "../ir/mesh.ts";
import type { PassOptions } from "./passes.ts";
import type { CompiledStep, StepOptions, StepSource } from "./step.ts";

/** A step to compile. */
export interface CompileRequest {
  readonly id: number;
  readonly source: StepSource;
  readonly axes: Readonly<Record<string, number>>;
  readonly options: Omit<StepOptions, "layout" | "passes">;
  readonly passes: Omit<PassOptions, "onPass" | "onTime">;
  /** Whether the caller wants to see the graph after each pass, and the times. */
  readonly wants: { readonly graphs: boolean; readonly times: boolean };
}

/** What comes back: graphs and times as they are made, then a result or an error. */
export type CompileReply = { readonly id: number } & (
  | { readonly kind: "pass"; readonly name: string; readonly graph: Graph }
  | { readonly kind: "time"; readonly stage: string; readonly seconds: number }
  | { readonly kind: "done"; readonly compiled: CompiledStep }
  | { readonly kind: "failed"; readonly error: ErrorData | Error }
);

/** A step as it is sent. */
export function toRequest(id: number, source: StepSource, options: StepOptions): CompileRequest {
  const { layout, passes, ...rest } = options;
  const { onPass, onTime, ...plain } = passes;
  return {
    id,
    source,
    axes: layout.sizes,
    options: rest,
    passes: plain,
    wants: { graphs: onPass !== undefined, times: onTime !== undefined },
  };
}

/** The options of a request; graphs and times go to `send`. */
export function requestOptions(request: CompileRequest, send: (reply: CompileReply) => void): StepOptions {
  const { id, axes, options, passes, wants } = request;
  return {
    ...options,
    layout: new MeshLayout(axes),
    passes: {
      ...passes,
      ...(wants.graphs ? { onPass: (name, graph) => send({ id, kind: "pass", name, graph }) } : {}),
      ...(wants.times ? { onTime: (stage, seconds) => send({ id, kind: "time", stage, seconds }) } : {}),
    },
  };
}

/** An error as it is sent: Error objects lose their class on the way. */
export function sentError(error: unknown): ErrorData | Error {
  if (error instanceof MeshworkError) return errorToData(error);
  return error instanceof Error ? error : new Error(String(error));
}

/** The error that was sent, of its own class. */
export function receivedError(error: ErrorData | Error): Error {
  return error instanceof Error ? error : errorFromData(error);
}
