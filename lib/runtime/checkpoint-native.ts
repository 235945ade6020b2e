// The addon's functions for checkpoints, as native/addon/checkpoints.cc describes them.

/** Host memory that a checkpoint passes through. */
export type MemoryHandle = number;
export type CheckpointHandle = number;

/** A file of a checkpoint. */
export interface ManifestFile {
  readonly name: string;
  readonly bytes: number;
  readonly sha256: string;
}

/**
 * A checked manifest: entry i of the first three lists is tensor i; its shape and stored shape follow each other in
 * dims.
 */
export interface ManifestIndex {
  readonly step: number;
  /** JSON of an object. */
  readonly record: string;
  /** SHA-256 of the manifest. */
  readonly digest: string;
  readonly files: readonly ManifestFile[];
  readonly names: readonly string[];
  readonly dtypes: readonly string[];
  readonly roles: readonly string[];
  /** Rank and rank of the stored shape of each tensor. */
  readonly ranks: Float64Array;
  readonly dims: Float64Array;
  /** Number of inner cuts of each dim of each tensor, and the cuts. */
  readonly cutCounts: Float64Array;
  readonly cuts: Float64Array;
  /** File of each cell; a tensor's cells are the rectangles between its cuts, row-major. */
  readonly cellFiles: Float64Array;
}

/** A step in putting a checkpoint in place. */
export type FolderStep =
  | { readonly kind: "makeFolder" | "syncFolder" | "remove"; readonly path: string }
  | { readonly kind: "write"; readonly path: string; readonly content: string }
  | { readonly kind: "rename"; readonly path: string; readonly to: string };

export interface CheckpointNative {
  memoryAlloc(bytes: number): MemoryHandle;
  memoryTouch(memory: MemoryHandle): Promise<Uint8Array>;
  memoryFree(memory: MemoryHandle): void;
  memoryStop(memory: MemoryHandle): void;
  memoryRead(memory: MemoryHandle, byteOffset: number, target: NodeJS.ArrayBufferView): void;
  snapshot(engine: number, memory: MemoryHandle, copies: Float64Array): Promise<Uint8Array>;
  restore(engine: number, memory: MemoryHandle, blocks: Float64Array): Promise<Uint8Array>;
  shardsWrite(
    memory: MemoryHandle,
    paths: readonly string[],
    headers: readonly string[],
    words: Float64Array,
  ): Promise<Uint8Array>;
  checkpointNew(): CheckpointHandle;
  checkpointOpen(checkpoint: CheckpointHandle, folder: string): Promise<Uint8Array>;
  checkpointManifest(checkpoint: CheckpointHandle): ManifestIndex;
  checkpointRead(checkpoint: CheckpointHandle, memory: MemoryHandle, targets: Float64Array): Promise<Uint8Array>;
  checkpointClose(checkpoint: CheckpointHandle): void;
  folderSteps(kinds: readonly string[], paths: readonly string[], others: readonly string[]): Promise<Uint8Array>;
}
