// The door of optim: optimizers and schedules of the learning rate.
export { type AdamWOptions, adamw, type Optimizer, type SgdOptions, sgd } from "./optimizer.ts";
export {
  constant,
  cosine,
  type DecayOptions,
  type LearningRateSchedule,
  linear,
  type WarmupOptions,
} from "./schedules.ts";
