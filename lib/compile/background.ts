// Compiles steps without holding up the event loop: small ones at once, large ones in a worker thread, one after the
// other.
import { Worker } from "node:worker_threads";
import { AbortedError, DeviceError } from "../core/errors.ts";
import { type CompileReply, type CompileRequest, receivedError, toRequest } from "./messages.ts";
import { type PassOptions, verifyByDefault } from "./passes.ts";
import { type CompiledStep, compileStep, graphsOf, type StepOptions, type StepSource } from "./step.ts";

/**
 * Most nodes of a step, over all its graphs and devices, that is compiled on the calling thread: some ten milliseconds.
 */
export const inlineNodes = 200;

/** The worker is ended when it has had nothing to do for so long. */
const idleMs = 5000;

/** Beside this file: what its source was compiled to, or what loads the source where meshwork runs from sources. */
const workerFile = new URL(
  import.meta.url.endsWith(".ts") ? "./worker-from-source.mjs" : "./worker.js",
  import.meta.url,
);

/**
 * Compiles a step: a small one before this returns, so that what follows in the same task comes after it. Throws or
 * rejects with what compileStep() throws; rejects with AbortedError when the signal fires first.
 */
export function compile(
  source: StepSource,
  options: StepOptions,
  signal?: AbortSignal,
): CompiledStep | Promise<CompiledStep> {
  if (signal?.aborted) throw aborted(signal);
  const nodes = graphsOf(source).reduce((sum, graph) => sum + graph.nodes.length, 0);
  return nodes * options.layout.devices <= inlineNodes
    ? compileStep(source, options)
    : compileInWorker(source, options, signal);
}

/** Compiles a step in the worker thread, whatever its size. */
export function compileInWorker(source: StepSource, options: StepOptions, signal?: AbortSignal): Promise<CompiledStep> {
  const { passes } = options;
  const request = toRequest(nextId++, source, {
    ...options,
    passes: { ...passes, verify: passes.verify ?? verifyByDefault },
  });
  return new Promise((resolve, reject) => {
    const onAbort = (): void => drop(request.id, aborted(signal!));
    const done = (): void => signal?.removeEventListener("abort", onAbort);
    const job: Job = {
      request,
      passes,
      resolve: (compiled) => {
        done();
        resolve(compiled);
      },
      reject: (error) => {
        done();
        reject(error);
      },
    };
    signal?.addEventListener("abort", onAbort);
    jobs.set(request.id, job);
    try {
      post(request);
    } catch (error) {
      finish(request.id)?.reject(error);
    }
  });
}

interface Job {
  readonly request: CompileRequest;
  readonly passes: PassOptions;
  resolve(compiled: CompiledStep): void;
  reject(error: unknown): void;
}

let nextId = 0;
let worker: Worker | undefined;
let idle: NodeJS.Timeout | undefined;
/** Requests that are not answered yet, in the order in which the worker takes them. */
const jobs = new Map<number, Job>();

function aborted(signal: AbortSignal): AbortedError {
  return new AbortedError("compiling was given up: its signal is aborted", { cause: signal.reason });
}

function post(request: CompileRequest): void {
  clearTimeout(idle);
  worker ??= startWorker();
  worker.ref();
  worker.postMessage(request);
}

function startWorker(): Worker {
  // The process's own flags (loaders, --eval) are not for this thread.
  const made = new Worker(workerFile, { name: "meshwork compile", execArgv: [] });
  const lost = (error: unknown): void => {
    if (worker !== made) return;
    worker = undefined;
    for (const id of [...jobs.keys()]) finish(id)?.reject(error);
  };
  made.on("message", answer);
  made.on("error", (cause) => lost(new DeviceError(`the thread that compiles failed: ${String(cause)}`, { cause })));
  made.on("exit", (code) => lost(new DeviceError(`the thread that compiles ended with code ${code}`)));
  return made;
}

function answer(reply: CompileReply): void {
  const job = jobs.get(reply.id);
  try {
    switch (reply.kind) {
      case "pass":
        job?.passes.onPass?.(reply.name, reply.graph);
        break;
      case "time":
        job?.passes.onTime?.(reply.stage, reply.seconds);
        break;
      case "done":
        finish(reply.id)?.resolve(reply.compiled);
        break;
      case "failed":
        finish(reply.id)?.reject(receivedError(reply.error));
    }
  } catch (error) {
    // What the caller's own onPass or onTime throws.
    drop(reply.id, error);
  }
}

/** Takes a request off the list. The process does not wait for an idle worker, which ends soon. */
function finish(id: number): Job | undefined {
  const job = jobs.get(id);
  jobs.delete(id);
  if (jobs.size === 0 && worker) {
    worker.unref();
    clearTimeout(idle);
    idle = setTimeout(endWorker, idleMs).unref();
  }
  return job;
}

/** Rejects a request early. If it is the one at work, the worker is ended and the others begin again in a new one. */
function drop(id: number, error: unknown): void {
  const atWork = jobs.keys().next().value === id;
  const job = finish(id);
  if (!job) return;
  job.reject(error);
  if (!atWork) return;
  endWorker();
  for (const { request } of jobs.values()) post(request);
}

function endWorker(): void {
  clearTimeout(idle);
  const ended = worker;
  worker = undefined;
  void ended?.terminate();
}
