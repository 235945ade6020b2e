// `meshwork generate`: continues a text or a list of tokens with a model folder.
import { Generator } from "../evaluate/generate.ts";
import { loadModel } from "../nn/load.ts";
import { Mesh } from "../tensor/mesh.ts";
import { Placement } from "../train/placement.ts";
import type { GenerateOptions } from "./generate-flags.ts";
import { type CliIo, EXIT } from "./io.ts";
import { createLog } from "./log.ts";
import { precisionOn } from "./precision.ts";
import { prepareGeneration } from "./prepare-generation.ts";

/** Runs the verb; returns the exit code. */
export async function runGenerate(options: GenerateOptions, io: CliIo): Promise<number> {
  const { folder, promptTokens, maxTokens, tokenizer, endTokens, sample } = await prepareGeneration(options);
  const model = await loadModel(folder);
  model.eval();
  const axes = Object.fromEntries(Object.entries(options.mesh ?? {}).filter(([, n]) => n > 1));
  await using mesh = await Mesh.open({ device: options.device ?? "auto", axes });
  const placement = await Placement.of(mesh, model);
  using generator = new Generator(placement, model, precisionOn(mesh.engine.kind, options.precision));
  const log = createLog({ log: options.log, io });
  const stream = tokenizer?.stream();
  const made: number[] = [];
  let text = "";
  let first: Float32Array | undefined;
  let firstAt = 0;
  const began = performance.now();
  for await (const { id, logits } of generator.tokens(promptTokens, {
    maxTokens,
    sample,
    endTokens,
    signal: io.signal,
  })) {
    if (first === undefined) firstAt = performance.now();
    first ??= logits;
    made.push(id);
    const piece = stream?.push(id) ?? "";
    text += piece;
    log.event({ type: "token", id, text: piece });
  }
  text += stream?.flush() ?? "";
  const seconds = (performance.now() - firstAt) / 1000;
  log.event({
    type: "done",
    tokens: made,
    text,
    timeToFirstToken: (firstAt - began) / 1000,
    tokensPerSecond: made.length > 1 ? (made.length - 1) / seconds : 0,
    ...(options.logits && first ? { logits: [...first] } : {}),
  });
  log.close();
  return EXIT.done;
}
