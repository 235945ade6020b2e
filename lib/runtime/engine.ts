// An engine: the devices of one mesh, their buffers, and the compiled steps loaded on them.
import type { StorageArray } from "../core/dtype.ts";
import { AbortedError, DeviceError } from "../core/errors.ts";
import * as addon from "./addon.ts";

/** Kinds of devices: `null` checks and counts programs but computes nothing. */
export type DeviceKind = "cpu" | "cuda" | "null";

/** "cuda" where there is a GPU that it can use, else "cpu". */
export function bestDevice(): DeviceKind {
  return addon.cudaStatus().gpus > 0 ? "cuda" : "cpu";
}

/** How an engine is opened. */
export interface EngineSettings {
  readonly device: DeviceKind;
  readonly devices: number;
  /** Threads of each device; by default the cores are shared out. */
  readonly threads?: number;
  /** Keeps every thread of CPU devices on a core of its own, as far as there are cores (Linux). */
  readonly pin?: boolean;
  /** Sends wait for their receives (tests of schedules). */
  readonly unbuffered?: boolean;
  /** Longest time nothing may move while ranks wait for each other, in ms. */
  readonly timeoutMs?: number;
}

/** What a program needs to be loaded: the words of each device, its buffers, the sizes of the staging memory. */
export interface LoadRequest {
  readonly programs: readonly Int32Array[];
  readonly buffers: readonly Int32Array[];
  readonly inputBytes: number;
  readonly outputBytes: number;
}

/** Tickets are int32. */
const maxTicket = 2 ** 31 - 1;

function abortedError(signal: AbortSignal): AbortedError {
  return new AbortedError("the run was given up: its signal is aborted", { cause: signal.reason });
}

/** The devices of a mesh. */
export class Engine implements Disposable {
  readonly devices: number;
  readonly kind: DeviceKind;
  readonly #handle: addon.EngineHandle;
  #open = true;
  #tickets = 0;

  constructor(settings: EngineSettings) {
    this.devices = settings.devices;
    this.kind = settings.device;
    this.#handle = addon.engineOpen({
      backend: settings.device,
      devices: settings.devices,
      ...(settings.threads === undefined ? {} : { threads: settings.threads }),
      ...(settings.pin === undefined ? {} : { pin: settings.pin }),
      ...(settings.unbuffered === undefined ? {} : { unbuffered: settings.unbuffered }),
      ...(settings.timeoutMs === undefined ? {} : { timeoutMs: settings.timeoutMs }),
    });
  }

  get handle(): addon.EngineHandle {
    if (!this.#open) throw new DeviceError("the mesh is closed");
    return this.#handle;
  }

  allocate(rank: number, bytes: number): number {
    return addon.bufferAlloc(this.handle, rank, bytes);
  }
  /** Frees a buffer; nothing when the engine is closed. */
  free(buffer: number): void {
    if (this.#open) addon.bufferFree(this.#handle, buffer);
  }
  /** Writes the start of a buffer. Throws while a run is on. */
  write(buffer: number, source: StorageArray): void {
    addon.bufferWrite(this.handle, buffer, 0, source);
  }
  /** Writes the start of a buffer before the next run: at once when idle, else behind the runs that are queued. */
  writeInTurn(buffer: number, source: StorageArray): void {
    if (!this.busy) {
      this.write(buffer, source);
      return;
    }
    // A failed run takes what is queued behind it along; a buffer or an engine that is gone needs no values.
    this.writeQueued(buffer, source).catch(() => {
      if (!this.#open) return;
      try {
        this.writeInTurn(buffer, source);
      } catch (error) {
        if (!(error instanceof DeviceError)) throw error;
      }
    });
  }
  /** Reads the start of a buffer. Throws while a run is on. */
  read(buffer: number, target: StorageArray): void {
    addon.bufferRead(this.handle, buffer, 0, target);
  }
  /** Writes the start of a buffer in turn with the runs; the values are copied at the call. */
  async writeQueued(buffer: number, source: StorageArray): Promise<void> {
    await addon.bufferWriteQueued(this.handle, buffer, 0, source);
  }
  /** Reads the start of a buffer after all runs queued before. */
  async readQueued(buffer: number, bytes: number): Promise<Uint8Array> {
    return addon.bufferReadQueued(this.handle, buffer, 0, bytes);
  }

  /** Checks and loads programs. */
  load(request: LoadRequest): Executable {
    const { programs, buffers, inputBytes, outputBytes } = request;
    return new Executable(
      this,
      addon.executableLoad(this.handle, programs, buffers, inputBytes, outputBytes),
      inputBytes,
    );
  }

  /** A number for one run, by which it can be cancelled. */
  newTicket(): number {
    this.#tickets = (this.#tickets % maxTicket) + 1;
    return this.#tickets;
  }
  /** Gives up a run that has changed nothing yet; false when it is too late. */
  cancel(ticket: number): boolean {
    return this.#open && addon.cancel(this.#handle, ticket, "the run was given up");
  }
  /** Aborts the run that is on and those queued. */
  abort(reason: string): void {
    addon.abort(this.handle, reason);
  }
  get busy(): boolean {
    return addon.busy(this.handle);
  }
  profile(on: boolean): void {
    addon.setProfiling(this.handle, on);
  }
  stats(): addon.EngineStats {
    return addon.stats(this.handle);
  }

  /** Stops the devices and frees everything. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    addon.engineClose(this.#handle);
  }
  [Symbol.dispose](): void {
    this.close();
  }
}

/** Loaded programs. */
export class Executable implements Disposable {
  /** Input staging, to be filled before run(). */
  readonly inputs: Uint8Array<ArrayBuffer>;
  readonly #engine: Engine;
  readonly #handle: addon.ExecutableHandle;
  #live = true;

  constructor(engine: Engine, handle: addon.ExecutableHandle, inputBytes: number) {
    this.#engine = engine;
    this.#handle = handle;
    this.inputs = new Uint8Array(inputBytes);
  }

  /**
   * Runs once; the inputs are copied at the call. Resolves with the output staging. When the signal fires, rejects with
   * AbortedError as soon as every device has come to the end of its kernel, and no bound buffer is changed; a run that
   * has begun to change them goes on to its end.
   */
  async run(signal?: AbortSignal): Promise<Uint8Array> {
    if (!this.#live) throw new DeviceError("the executable is disposed");
    if (!signal) return addon.run(this.#engine.handle, this.#handle, this.inputs);
    if (signal.aborted) throw abortedError(signal);
    const ticket = this.#engine.newTicket();
    let cancelled = false;
    const onAbort = (): void => {
      cancelled = this.#engine.cancel(ticket);
    };
    const done = addon.run(this.#engine.handle, this.#handle, this.inputs, ticket);
    signal.addEventListener("abort", onAbort);
    try {
      return await done;
    } catch (error) {
      throw cancelled ? abortedError(signal) : error;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Binds other buffers, from the next run on. */
  bind(buffers: readonly Int32Array[]): void {
    addon.executableBind(this.#engine.handle, this.#handle, buffers);
  }

  [Symbol.dispose](): void {
    if (!this.#live) return;
    this.#live = false;
    try {
      addon.executableFree(this.#engine.handle, this.#handle);
    } catch (error) {
      // A closed engine has freed it already.
      if (!(error instanceof DeviceError)) throw error;
    }
  }
}
