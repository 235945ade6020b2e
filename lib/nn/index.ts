// The door of nn: modules, layers, models, and model folders in Hugging Face's format.
export type { ConfigJson, ExpertsConfig, GPT2Config, LlamaConfig, ModelConfig } from "./config.ts";
export { parseModelConfig as parseConfig, readModelConfig as readConfig } from "./config.ts";
export { configJson } from "./config-json.ts";
export { Experts } from "./experts.ts";
export { GPT2 } from "./gpt2.ts";
export { IGNORED_TARGET, LanguageModel, type LossTerms, type PipelineBlock } from "./language-model.ts";
export {
  Dropout,
  Embedding,
  LayerNorm,
  Linear,
  type LinearOptions,
  Projection,
  type ProjectionOptions,
  RMSNorm,
} from "./layers.ts";
export { Llama } from "./llama.ts";
export { createModel as create, loadModel as load, saveModel as save } from "./load.ts";
export { Module, nameModules } from "./module.ts";
