// Loads compiled steps on an engine and moves named inputs and results through their staging memory.
import { type StorageArray, storageView } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { shapeText } from "../core/shape.ts";
import type { Engine, Executable } from "../runtime/engine.ts";
import type { PersistentStore } from "../runtime/persistent.ts";
import { layOut } from "./sequence.ts";
import type { CompiledStep, StagingEntry } from "./step.ts";

/** A compiled step on its devices. */
export class LoadedStep implements Disposable {
  readonly compiled: CompiledStep;
  readonly #executable: Executable;

  constructor(engine: Engine, store: PersistentStore, compiled: CompiledStep) {
    this.compiled = compiled;
    this.#executable = engine.load({
      programs: compiled.programs,
      buffers: buffersOf(store, compiled.bindings),
      inputBytes: compiled.inputBytes,
      outputBytes: compiled.outputBytes,
    });
  }

  /** Binds other persistent tensors, from the next run on: ids of each device, in the order of its bound buffers. */
  bind(store: PersistentStore, bindings: CompiledStep["bindings"]): void {
    this.#executable.bind(buffersOf(store, bindings));
  }

  /** Runs once with all inputs given by name; resolves with the results by name. `signal` as for Executable.run(). */
  async run(
    inputs: Readonly<Record<string, ArrayLike<number>>>,
    signal?: AbortSignal,
  ): Promise<Map<string, StorageArray>> {
    for (const entry of this.compiled.inputs) this.#fill(entry, entry.values ?? inputs[entry.name]);
    const bytes = await this.#executable.run(signal);
    return new Map(
      this.compiled.outputs.map((e) => {
        const count = e.shape.reduce((a, b) => a * b, 1);
        return [e.name, storageView(e.dtype, bytes.buffer, bytes.byteOffset + e.offset, count)];
      }),
    );
  }

  #fill(entry: StagingEntry, values: ArrayLike<number> | undefined): void {
    const count = entry.shape.reduce((a, b) => a * b, 1);
    if (values?.length !== count) {
      throw new ShapeError(
        `input ${entry.name} of shape ${shapeText(entry.shape)} takes ${count} elements, got ${values?.length ?? "none"}`,
      );
    }
    const staging = storageView(entry.dtype, this.#executable.inputs.buffer, entry.offset, count);
    if (entry.layout) layOut(entry.layout, entry.shape, values, staging);
    else staging.set(values);
  }

  [Symbol.dispose](): void {
    this.#executable[Symbol.dispose]();
  }
}

function buffersOf(store: PersistentStore, bindings: CompiledStep["bindings"]): Int32Array[] {
  return bindings.map((ids, rank) => Int32Array.from(ids, (id) => store.buffer(id, rank)));
}
