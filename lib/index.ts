// The public API: re-exports only. test/api.test.ts holds the list of names.

// Devices and tensors
export { Mesh, type MeshOptions, type TensorOptions } from "./tensor/mesh.ts";
export {
  Collective,
  type CollectiveName,
  type CollectiveOperand,
  type CollectiveOptions,
  type DeviceArray,
  Group,
} from "./tensor/group.ts";
export { Device } from "./tensor/device.ts";
export { Buffer } from "./tensor/buffer.ts";
export { Kernel, type KernelOperand, type KernelOptions } from "./tensor/kernel.ts";
export type { KernelName } from "./ops/kernels.ts";
export { type Nested, type Operand, Tensor, type TensorContext } from "./tensor/tensor.ts";
export { type Initial, Parameter, type ParameterOptions } from "./tensor/parameter.ts";
export type { DType, StorageArray } from "./core/dtype.ts";
export type { Shape } from "./core/shape.ts";
export type { PartitionSpec, ReduceKind } from "./ir/spec.ts";
export {
  attention,
  type AttentionOptions,
  concat,
  crossEntropy,
  embedding,
  full,
  iota,
  layerNorm,
  rmsNorm,
  rope,
  topk,
} from "./tensor/functions.ts";

// Functions of tensors
export { grad, valueAndGrad, type Variable } from "./tensor/value-and-grad.ts";
export {
  type CallArguments,
  compile,
  CompiledFunction,
  type CompileOptions,
  type Results,
} from "./tensor/compile-function.ts";

// Steps of models
export {
  type BatchData,
  type PlannedTrainStep,
  planTrainStep,
  type StepCallOptions,
  type StepResult,
  TrainStep,
  trainStep,
  type TrainStepOptions,
} from "./train/step.ts";
export { type Spike, SpikeDetector, type SpikeOptions } from "./train/spikes.ts";
export { type ForwardOptions, ForwardStep, forwardStep, lossStep } from "./train/forward.ts";
export { type Placeable, Placement } from "./train/placement.ts";
export { type PlannedDevice, type RecomputeOutcome, StepPlan } from "./train/plan.ts";
export {
  measuredTimeline,
  type ProfiledEvent,
  type ScheduleQuestion,
  simulateSchedule,
  type TimedRun,
  type Timeline,
  timelineSvg,
} from "./train/timeline.ts";
export { type Preset, presetConfig, presets, type TrainingDefaults } from "./train/presets.ts";
export type { Batch, BatchField, Loss, LossFunction, LossTerm } from "./train/trace.ts";
export { type GeneratedToken, type GenerateOptions, Generator } from "./evaluate/generate.ts";
export { createSampler, type Sampler, type SamplerOptions } from "./evaluate/sampler.ts";
export * as nn from "./nn/index.ts";
export * as optim from "./optim/index.ts";
export * as data from "./data/index.ts";

// Files
export { type TensorInfo, type TensorSource, Weights, writeSafetensors } from "./checkpoint/safetensors.ts";
export { Checkpointer, type CheckpointerOptions, type PendingSave } from "./checkpoint/checkpointer.ts";
export { loadCheckpoint, type LoadedCheckpoint, type LoadOptions, openCheckpoint } from "./checkpoint/load.ts";
export { type Parent, saveCheckpoint, type SavedCheckpoint, type SaveOptions } from "./checkpoint/save.ts";
export { type CheckpointState, stateOf, type StateTensor, type TensorRole } from "./checkpoint/state.ts";
export { StoredCheckpoint, type StoredTensor } from "./checkpoint/stored.ts";

// The runtime below
export { type DeviceKind, Engine, type EngineSettings } from "./runtime/engine.ts";

// Errors
export {
  AbortedError,
  CheckpointError,
  CollectiveTimeoutError,
  ConfigError,
  DataError,
  DeviceError,
  DTypeError,
  type ErrorDetails,
  FileError,
  MeshError,
  MeshworkError,
  NonFiniteError,
  PlanError,
  ProgramError,
  ShapeError,
  ShardingError,
  SpikeError,
  StaleTensorError,
  UsageError,
} from "./core/errors.ts";
