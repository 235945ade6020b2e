// Which device writes which cell of which tensor, and where in host memory the cells lie before they are written.
import { CheckpointError } from "../core/errors.ts";
import { type DType, dtypeSize } from "../core/dtype.ts";
import type { Shape } from "../core/shape.ts";
import { cellsOf, cutsOf, elementsOf, isEmpty } from "./grid.ts";
import type { CheckpointState, StateTensor } from "./state.ts";

const STORED: Readonly<Record<DType, string>> = {
  f32: "F32",
  f64: "F64",
  bf16: "BF16",
  f16: "F16",
  i32: "I32",
  bool: "BOOL",
};

/** The name of a dtype in files. */
export function storedName(dtype: DType): string {
  return STORED[dtype];
}

/** The dtype of a name in files; undefined for those that devices have not. */
export function deviceDType(name: string): DType | undefined {
  return (Object.keys(STORED) as DType[]).find((dtype) => STORED[dtype] === name);
}

/** A cell of a tensor, and who writes it. */
export interface OwnedCell {
  readonly shape: readonly number[];
  readonly bytes: number;
  readonly buffer: number;
  /** Number of the file, by ShardPlan.files. */
  file: number;
  /** Number among the tensors of that file. */
  index: number;
}

/** A tensor with its cells, row-major between its cuts. */
export interface PlannedTensor extends StateTensor {
  readonly dtype: DType;
  readonly shape: Shape;
  readonly cuts: readonly (readonly number[])[];
  readonly cells: readonly OwnedCell[];
}

/** A file: the cells that one device owns, one after the other. */
export interface PlannedFile {
  readonly name: string;
  /** Byte of its first cell in host memory. */
  readonly offset: number;
  /** Where each cell ends, from there. */
  readonly ends: readonly number[];
  readonly header: string;
}

/** What to copy and to write. */
export interface ShardPlan {
  readonly tensors: readonly PlannedTensor[];
  readonly files: readonly PlannedFile[];
  readonly bytes: number;
  /** [buffer, bytes, byte in host memory] of each cell. */
  readonly copies: readonly number[];
}

/**
 * Gives every cell to one of the devices that hold it, the one with the fewest bytes so far. Throws CheckpointError for
 * two tensors of one name.
 */
export function planShards(state: CheckpointState): ShardPlan {
  const { store, layout } = state.mesh;
  const names = new Set<string>();
  const load = new Array<number>(layout.devices).fill(0);
  const owned = load.map((): { tensor: PlannedTensor; cell: OwnedCell }[] => []);
  const tensors = state.tensors.map((wanted): PlannedTensor => {
    if (names.has(wanted.name) || wanted.name === "" || wanted.name === "__metadata__") {
      throw new CheckpointError(`tensor "${wanted.name}": its name is taken`, { details: { tensor: wanted.name } });
    }
    names.add(wanted.name);
    const { dtype, shape } = store.type(wanted.id);
    const holders = store.holders(wanted.id);
    const cuts = cutsOf(shape, holders);
    const cells: OwnedCell[] = [];
    const tensor: PlannedTensor = { ...wanted, dtype, shape, cuts, cells };
    for (const cell of cellsOf(shape, cuts)) {
      const bytes = elementsOf(cell) * dtypeSize(dtype);
      const same = holders.filter((h) => isEmpty(cell) || h.start.every((s, d) => s === cell.start[d]));
      const owner = same.reduce((best, h) => (load[h.rank]! < load[best.rank]! ? h : best));
      const made = {
        shape: cell.shape,
        bytes,
        buffer: owner.buffer,
        file: owner.rank,
        index: owned[owner.rank]!.length,
      };
      cells.push(made);
      load[owner.rank]! += bytes;
      owned[owner.rank]!.push({ tensor, cell: made });
    }
    return tensor;
  });
  return layOut(state, tensors, owned);
}

function layOut(
  state: CheckpointState,
  tensors: readonly PlannedTensor[],
  owned: readonly { tensor: PlannedTensor; cell: OwnedCell }[][],
): ShardPlan {
  const files: PlannedFile[] = [];
  const copies: number[] = [];
  let offset = 0;
  owned.forEach((list, rank) => {
    if (list.length === 0) return;
    const ends: number[] = [];
    let end = 0;
    for (const { cell } of list) {
      cell.file = files.length;
      copies.push(cell.buffer, cell.bytes, offset + end);
      end += cell.bytes;
      ends.push(end);
    }
    const name = `device-${String(rank).padStart(4, "0")}.safetensors`;
    files.push({ name, offset, ends, header: headerOf(state.step, list) });
    offset += end;
  });
  return { tensors, files, bytes: offset, copies };
}

function headerOf(step: number, list: readonly { tensor: PlannedTensor; cell: OwnedCell }[]): string {
  const entries = [`"__metadata__":${JSON.stringify({ format: "pt", step: String(step) })}`];
  let begin = 0;
  for (const { tensor, cell } of list) {
    const entry = {
      dtype: storedName(tensor.dtype),
      shape: cell.shape,
      data_offsets: [begin, begin + cell.bytes],
    };
    begin += cell.bytes;
    entries.push(`${JSON.stringify(tensor.name)}:${JSON.stringify(entry)}`);
  }
  const text = `{${entries.join(",")}}`;
  return text + " ".repeat((8 - (new TextEncoder().encode(text).length % 8)) % 8);
}
