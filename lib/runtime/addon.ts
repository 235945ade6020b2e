// The native addon, typed: the only file that loads it. Every function throws, or rejects with, meshwork's own errors.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import {
  AbortedError,
  CheckpointError,
  CollectiveTimeoutError,
  DeviceError,
  FileError,
  type MeshworkError,
  ProgramError,
} from "../core/errors.ts";
import { opTableHash } from "../ops/hash.ts";
import type { CheckpointNative } from "./checkpoint-native.ts";

/** Handles are small positive integers; those of closed or freed things are refused. */
export type EngineHandle = number;
export type BufferHandle = number;
export type ExecutableHandle = number;
export type FileHandle = number;

/** What machine and what build this is. */
export interface AddonInfo {
  readonly opTableHash: number;
  /** Instruction sets of the processor, e.g. `avx512 bf16`. */
  readonly isa: string;
  /** The set the kernels use: `amx`, `avx512bf16`, `avx512`, `avx2` or `portable`. */
  readonly kernels: string;
  /** Cores this process may use. */
  readonly cores: number;
}

/** Whether the CUDA backend can be used. */
export interface CudaStatus {
  /** GPUs that it can use; 0 where it, a driver or a GPU is not there. */
  readonly gpus: number;
  /** What it was built with and for, or why it cannot be used. */
  readonly detail: string;
}

/** A library that the CUDA backend opens at run time. */
export interface CudaLibrary {
  readonly name: string;
  /** Empty when it was not found. */
  readonly version: string;
  /** Where it was found, or why it was not. */
  readonly detail: string;
}

/** How an engine is opened. */
export interface EngineOptions {
  /** `null` holds programs to the CPU's kernels but computes nothing: layouts of any size can be loaded and counted. */
  readonly backend: "cpu" | "cuda" | "null";
  readonly devices: number;
  /** Threads of each device; 0: the cores are shared out, at least one each. */
  readonly threads?: number;
  /** Keeps every thread of CPU devices on a core of its own, as far as there are cores (Linux). */
  readonly pin?: boolean;
  /** A transfer ends only when its sends were received: for tests of schedules. */
  readonly unbuffered?: boolean;
  /** A rank that waits while nothing at all moves for this long fails the run; 0: never. Default 60000. */
  readonly timeoutMs?: number;
}

/** Collectives or sends of one kind that a device took part in. */
export interface Traffic {
  /** A collective's name, or `send`. */
  readonly op: string;
  readonly groupSize: number;
  readonly calls: number;
  /** Bytes of the whole tensors: the larger of x and y of each call. */
  readonly bytes: number;
}

/** What a device has done since its engine was opened. */
export interface DeviceCounters {
  readonly runs: number;
  /** By op name. */
  readonly instructions: Readonly<Record<string, number>>;
  readonly traffic: readonly Traffic[];
}

/** One instruction, or a wait, of the last run. Times are seconds since the run began. */
export interface ProfileEvent {
  readonly device: number;
  readonly op: string;
  readonly label: string;
  readonly begin: number;
  readonly end: number;
}

/** The state after the last finished run. */
export interface EngineStats {
  readonly backend: string;
  /** Threads of each device. */
  readonly threads: number;
  readonly runs: number;
  /** Wall time of the last run. */
  readonly lastSeconds: number;
  /** Of each device. */
  readonly arenaBytes: readonly number[];
  readonly bufferBytes: readonly number[];
  readonly devices: readonly DeviceCounters[];
  /** Empty unless profiling. */
  readonly profile: readonly ProfileEvent[];
}

/** A safetensors file, open and with its header checked: entry i of each list is tensor i. */
export interface SafetensorsIndex {
  readonly file: FileHandle;
  /** Size of the file. */
  readonly bytes: number;
  readonly names: readonly string[];
  /** The format's names: `F32`, `BF16`, `I64`, ... */
  readonly dtypes: readonly string[];
  readonly ranks: Int32Array;
  /** All dims, one tensor after the other. */
  readonly dims: Float64Array;
  /** First byte in the file of each tensor, and the byte behind its last. */
  readonly begins: Float64Array;
  readonly ends: Float64Array;
  /** The pairs of `__metadata__`. */
  readonly metadata: readonly (readonly [string, string])[];
}

/** A view over an ordinary ArrayBuffer; shared, resizable and detached ones are refused. */
export type HostView = NodeJS.ArrayBufferView;

/** The functions of the addon. */
export interface Native extends CheckpointNative {
  info(): AddonInfo;
  cudaStatus(): CudaStatus;
  cudaLibraries(): CudaLibrary[];
  engineOpen(
    backend: string,
    devices: number,
    threads: number,
    unbuffered: boolean,
    timeoutMs: number,
    pin: boolean,
  ): EngineHandle;
  engineClose(engine: EngineHandle): void;
  bufferAlloc(engine: EngineHandle, device: number, bytes: number): BufferHandle;
  bufferFree(engine: EngineHandle, buffer: BufferHandle): void;
  bufferWrite(engine: EngineHandle, buffer: BufferHandle, byteOffset: number, source: HostView): void;
  bufferRead(engine: EngineHandle, buffer: BufferHandle, byteOffset: number, target: HostView): void;
  bufferWriteQueued(
    engine: EngineHandle,
    buffer: BufferHandle,
    byteOffset: number,
    source: HostView,
  ): Promise<Uint8Array>;
  bufferReadQueued(engine: EngineHandle, buffer: BufferHandle, byteOffset: number, bytes: number): Promise<Uint8Array>;
  executableLoad(
    engine: EngineHandle,
    programs: readonly Int32Array[],
    buffers: readonly Int32Array[],
    inputBytes: number,
    outputBytes: number,
  ): ExecutableHandle;
  executableBind(engine: EngineHandle, executable: ExecutableHandle, buffers: readonly Int32Array[]): void;
  executableFree(engine: EngineHandle, executable: ExecutableHandle): void;
  run(engine: EngineHandle, executable: ExecutableHandle, inputs: HostView, ticket: number): Promise<Uint8Array>;
  cancel(engine: EngineHandle, ticket: number, reason: string): boolean;
  abort(engine: EngineHandle, reason: string): void;
  busy(engine: EngineHandle): boolean;
  setProfiling(engine: EngineHandle, on: boolean): void;
  stats(engine: EngineHandle): EngineStats;
  safetensorsOpen(path: string, followLinks: boolean): SafetensorsIndex;
  fileRead(file: FileHandle, byteOffset: number, target: HostView): void;
  fileClose(file: FileHandle): void;
}

const root = new URL("../../", import.meta.url);
const places = ["build-native/meshwork.node", "build/Release/meshwork.node"];

let loaded: Native | undefined;

function native(): Native {
  loaded ??= load();
  return loaded;
}

function load(): Native {
  const require = createRequire(import.meta.url);
  const failures: string[] = [];
  for (const place of places) {
    const path = fileURLToPath(new URL(place, root));
    try {
      const addon: Native = require(path);
      if (addon.info().opTableHash === opTableHash) return addon;
      failures.push(`${path}: built for another version of meshwork`);
    } catch (error) {
      failures.push(`${path}: ${error instanceof Error ? error.message.split("\n", 1)[0] : String(error)}`);
    }
  }
  throw new DeviceError("the native addon is not there: build it with `node scripts/build-native.mjs`", {
    details: { tried: failures },
  });
}

/** meshwork's error for one that native code threw; others (such as out of stack) as they are. */
function typed(error: unknown): unknown {
  if (!(error instanceof Error) || !("code" in error) || typeof error.code !== "string") return error;
  const make = classes.get(error.code);
  return make === undefined ? error : make(error.message, error.code, error);
}

/** What an error is about, where native code says so. */
function subject(cause: Error): { details?: { file?: string; tensor?: string } } {
  const text = (name: string): string => String(Reflect.get(cause, name) ?? "");
  const [file, tensor] = [text("file"), text("tensor")];
  if (file === "") return {};
  return { details: tensor === "" ? { file } : { file, tensor } };
}

type MakeError = (message: string, code: string, cause: Error) => MeshworkError;

const device: MakeError = (message, code, cause) => new DeviceError(message, { cause, details: { reason: code } });
const classes: ReadonlyMap<string, MakeError> = new Map<string, MakeError>([
  ["invalidProgram", (message) => new ProgramError(message)],
  ["unsupported", (message) => new ProgramError(message)],
  ["invalidArgument", device],
  ["outOfMemory", device],
  ["internal", device],
  ["device", device],
  ["aborted", (message) => new AbortedError(message)],
  ["timeout", (message) => new CollectiveTimeoutError(message)],
  ["io", (message, _, cause) => new FileError(message, subject(cause))],
  ["invalidFile", (message, _, cause) => new CheckpointError(message, subject(cause))],
]);

/** Runs a native function; its errors become meshwork's. For the wrappers of this folder. */
export function call<T>(body: (addon: Native) => T): T {
  const addon = native();
  try {
    return body(addon);
  } catch (error) {
    throw typed(error);
  }
}

/** The same for functions that return promises. */
export async function settle<T>(body: (addon: Native) => Promise<T>): Promise<T> {
  const addon = native();
  try {
    return await body(addon);
  } catch (error) {
    throw typed(error);
  }
}

/** The machine and the build. */
export function info(): AddonInfo {
  return call((a) => a.info());
}

/** Looks for GPUs, which starts the driver: not before a GPU may be wanted. */
export function cudaStatus(): CudaStatus {
  return call((a) => a.cudaStatus());
}

/** The libraries that the CUDA backend opens, searched for as it does. */
export function cudaLibraries(): CudaLibrary[] {
  return call((a) => a.cudaLibraries());
}

/** Starts the devices. Throws DeviceError where there are none of the kind. */
export function engineOpen(options: EngineOptions): EngineHandle {
  const { backend, devices, threads = 0, unbuffered = false, timeoutMs = 60000, pin = false } = options;
  return call((a) => a.engineOpen(backend, devices, threads, unbuffered, timeoutMs, pin));
}

/** Aborts what runs (its promises reject with AbortedError), joins the devices' threads and frees everything. */
export function engineClose(engine: EngineHandle): void {
  call((a) => a.engineClose(engine));
}

/** Zeroed memory of a device, 64-byte aligned. */
export function bufferAlloc(engine: EngineHandle, device: number, bytes: number): BufferHandle {
  return call((a) => a.bufferAlloc(engine, device, bytes));
}

/**
 * The handle is gone at once; the memory goes when no queued run uses it. An executable bound to it must be rebound.
 */
export function bufferFree(engine: EngineHandle, buffer: BufferHandle): void {
  call((a) => a.bufferFree(engine, buffer));
}

/** Copies now; throws while a run is on or queued (use bufferWriteQueued then). */
export function bufferWrite(engine: EngineHandle, buffer: BufferHandle, byteOffset: number, source: HostView): void {
  call((a) => a.bufferWrite(engine, buffer, byteOffset, source));
}

/** Fills `target` now; throws while a run is on or queued (use bufferReadQueued then). */
export function bufferRead(engine: EngineHandle, buffer: BufferHandle, byteOffset: number, target: HostView): void {
  call((a) => a.bufferRead(engine, buffer, byteOffset, target));
}

/** Copies `source` at the call; the buffer is written in turn with the runs, on a device's thread. */
export async function bufferWriteQueued(
  engine: EngineHandle,
  buffer: BufferHandle,
  byteOffset: number,
  source: HostView,
): Promise<void> {
  await settle((a) => a.bufferWriteQueued(engine, buffer, byteOffset, source));
}

/** The buffer's bytes as they are after all runs queued before. */
export function bufferReadQueued(
  engine: EngineHandle,
  buffer: BufferHandle,
  byteOffset: number,
  bytes: number,
): Promise<Uint8Array> {
  return settle((a) => a.bufferReadQueued(engine, buffer, byteOffset, bytes));
}

/**
 * Decodes, checks and keeps one program per device, bound to one list of buffer handles per device, and grows the
 * devices' arenas. Throws ProgramError for a program that is not safe to run, DeviceError for a binding that does not
 * fit.
 */
export function executableLoad(
  engine: EngineHandle,
  programs: readonly Int32Array[],
  buffers: readonly Int32Array[],
  inputBytes: number,
  outputBytes: number,
): ExecutableHandle {
  return call((a) => a.executableLoad(engine, programs, buffers, inputBytes, outputBytes));
}

/** Binds other buffers, from the next run() on; runs already queued keep theirs. */
export function executableBind(
  engine: EngineHandle,
  executable: ExecutableHandle,
  buffers: readonly Int32Array[],
): void {
  call((a) => a.executableBind(engine, executable, buffers));
}

/** Queued runs of it still run. */
export function executableFree(engine: EngineHandle, executable: ExecutableHandle): void {
  call((a) => a.executableFree(engine, executable));
}

/**
 * Queues a run; `inputs` (exactly the executable's input bytes) are copied at the call. Resolves with the output bytes.
 * When a run fails, those queued behind it are aborted too; the engine is then ready for more. A ticket other than 0
 * names it for cancel().
 */
export function run(
  engine: EngineHandle,
  executable: ExecutableHandle,
  inputs: HostView,
  ticket = 0,
): Promise<Uint8Array> {
  return settle((a) => a.run(engine, executable, inputs, ticket));
}

/**
 * Gives up a run that is on or queued: it rejects with AbortedError, has changed no bound buffer, and those behind it
 * go on. False when it is too late: it is over, or has begun to write bound buffers and goes on to its end.
 */
export function cancel(engine: EngineHandle, ticket: number, reason: string): boolean {
  return call((a) => a.cancel(engine, ticket, reason));
}

/** Aborts the run that is on and those queued: they reject with AbortedError. Nothing when idle. */
export function abort(engine: EngineHandle, reason: string): void {
  call((a) => a.abort(engine, reason));
}

/** Whether a run or a queued copy has not finished. */
export function busy(engine: EngineHandle): boolean {
  return call((a) => a.busy(engine));
}

/** Whether runs queued from now on record a profile. */
export function setProfiling(engine: EngineHandle, on: boolean): void {
  call((a) => a.setProfiling(engine, on));
}

/** Counters and times. */
export function stats(engine: EngineHandle): EngineStats {
  return call((a) => a.stats(engine));
}

/**
 * Opens a safetensors file and checks its header: FileError when it cannot be read, CheckpointError when it is
 * malformed. With `followLinks` false a symbolic link is refused. Close the file with fileClose.
 */
export function safetensorsOpen(path: string, options: { readonly followLinks?: boolean } = {}): SafetensorsIndex {
  return call((a) => a.safetensorsOpen(path, options.followLinks ?? true));
}

/** Fills `target` with the file's bytes from `byteOffset`; throws beyond the end. */
export function fileRead(file: FileHandle, byteOffset: number, target: HostView): void {
  call((a) => a.fileRead(file, byteOffset, target));
}

/** Closes the file. */
export function fileClose(file: FileHandle): void {
  call((a) => a.fileClose(file));
}
