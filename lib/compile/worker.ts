// The worker thread that compiles large steps: requests come in order, each is answered.
import { parentPort } from "node:worker_threads";
import { type CompileReply, type CompileRequest, requestOptions, sentError } from "./messages.ts";
import { compileStep } from "./step.ts";

const port = parentPort!;

port.on("message", (request: CompileRequest) => {
  const { id, source } = request;
  const send = (reply: CompileReply): void => port.postMessage(reply);
  try {
    const compiled = compileStep(source, requestOptions(request, send));
    // Programs may share memory: each buffer is handed over once.
    const buffers = new Set(compiled.programs.map(({ buffer }) => buffer as ArrayBuffer));
    port.postMessage({ id, kind: "done", compiled } satisfies CompileReply, [...buffers]);
  } catch (error) {
    send({ id, kind: "failed", error: sentError(error) });
  }
});
