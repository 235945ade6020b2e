// Depositing a microbatch's result in its cell: where one instruction alone makes the result, it writes the cell
// itself.
import { dtypeSize } from "../core/dtype.ts";
import type { Attribute, View } from "../ir/lowering.ts";
import { elementOps } from "../ops/kernels.ts";
import { isContiguous, type Instruction, type ProgramBuilder } from "../passes/lower.ts";
import { elementType } from "./element-type.ts";

/** Flag of the matmul kernel: add to what the result's memory holds. */
const accumulateFlag = 1;

/** Bytes of a table's gradient that are made, and added to its cell, at once: they stay in the caches. */
const tableBytes = 2 ** 22;

/** Puts a result into a cell ("store"), or adds it to what is there ("add"). */
export type DepositMode = "store" | "add";

/** Puts results into cells: once a run, or adding up over microbatches, where cells are zeroed first. */
export class Depositor {
  readonly #program: ProgramBuilder;
  readonly #mode: DepositMode;
  /** Buffers whose maker writes a cell instead. */
  readonly #moved = new Map<number, View>();

  constructor(program: ProgramBuilder, mode: DepositMode) {
    this.#program = program;
    this.#mode = mode;
  }

  deposit(segment: number, cell: View, value: View, label: string): void {
    this.#deposit(segment, cell, value, label, this.#mode);
  }

  /** Puts the sum of two results into a cell that is written once. */
  depositSum(segment: number, cell: View, values: readonly [View, View], label: string): void {
    const [x, y] = values;
    const first = (view: View): number => this.#madeAt(segment, view);
    const [early, late] = first(x) <= first(y) ? [x, y] : [y, x];
    const at = first(early);
    this.#deposit(segment, cell, early, label, "store");
    // Only what was stored where it was made is there when the other one is.
    const inOrder = this.#moved.has(early.buffer) && at < first(late);
    if (inOrder && !this.#moved.has(late.buffer) && this.#addRows(segment, cell, late)) return;
    this.#add(segment, cell, late, label);
  }

  #deposit(segment: number, cell: View, value: View, label: string, mode: DepositMode): void {
    const moved = this.#moved.get(value.buffer);
    if (!moved && this.#redirect(segment, cell, value, mode)) return;
    if (mode === "add") this.#add(segment, cell, value, label);
    else this.#program.copy(segment, moved ? { ...value, buffer: moved.buffer } : value, cell, label);
  }

  #add(segment: number, cell: View, value: View, label: string): void {
    const moved = this.#moved.get(value.buffer);
    this.#program.emit(segment, addition(cell, moved ? { ...value, buffer: moved.buffer } : value, label));
  }

  /** The instruction that first writes a value; after all where another segment does. */
  #madeAt(segment: number, { buffer }: View): number {
    return this.#program.buffers[buffer]!.uses.get(segment)?.first ?? Number.POSITIVE_INFINITY;
  }

  /** The only instruction that touches a value's buffer, all of which it writes; null where there is none such. */
  #makerOf(segment: number, cell: View, value: View): { at: number; output: number; maker: Instruction } | null {
    const buffer = this.#program.buffers[value.buffer]!;
    const use = buffer.uses.get(segment);
    const own = buffer.home === "auto" && buffer.uses.size === 1 && use !== undefined && use.first === use.last;
    if (!own || value.offset !== 0 || !isContiguous(value) || value.dtype !== cell.dtype) return null;
    const maker = this.#program.segments[segment]!.instructions[use.first]!;
    const output = maker.outputs.findIndex((v) => v.buffer === value.buffer);
    const once = [...maker.inputs, ...maker.outputs].filter((v) => v.buffer === value.buffer).length === 1;
    if (output < 0 || !once || !wholeBuffer(maker.outputs[output]!, buffer.bytes, value)) return null;
    return { at: use.first, output, maker };
  }

  /** Lets the only instruction that touches the value's buffer write the cell. False where that cannot be. */
  #redirect(segment: number, cell: View, value: View, mode: DepositMode): boolean {
    const known = this.#makerOf(segment, cell, value);
    if (!known) return false;
    const { at, output, maker } = known;
    const added = mode === "add" ? accumulating(maker) : maker;
    if (!added) return this.#addRows(segment, cell, value);
    const outputs = added.outputs.map((v, i) => (i === output ? { ...v, buffer: cell.buffer } : v));
    this.#program.segments[segment]!.instructions[at] = { ...added, outputs };
    this.#program.buffers[value.buffer]!.uses.clear();
    this.#program.touch(cell, segment, at);
    this.#moved.set(value.buffer, cell);
    return true;
  }

  /**
   * Makes a table's gradient a few rows at a time, adding them to the cell, instead of all of it first: the same sums,
   * in the memory of those rows. False where something else makes the value, or the table is small.
   */
  #addRows(segment: number, cell: View, value: View): boolean {
    const known = this.#makerOf(segment, cell, value);
    if (known?.maker.kernel !== "embedding_grad") return false;
    const { at, maker } = known;
    const [rows, width] = maker.outputs[0]!.dims as [number, number];
    const each = Math.max(1, Math.floor(tableBytes / (width * dtypeSize(cell.dtype))));
    if (rows <= 2 * each) return false;
    const instructions: Instruction[] = [];
    for (let row = 0; row < rows; row += each) {
      const dims = [Math.min(each, rows - row), width];
      const part = this.#program.allocate(cell.dtype, dims, "auto");
      const target = { ...cell, offset: cell.offset + row * width, dims, strides: part.strides };
      instructions.push({ ...maker, outputs: [part], attributes: [later(maker.attributes[0]!, row)] });
      instructions.push(addition(target, part, maker.label));
    }
    this.#program.buffers[value.buffer]!.uses.clear();
    this.#program.replace(segment, at, instructions);
    this.#moved.set(value.buffer, cell);
    return true;
  }
}

/** Adds a value to what a cell holds. */
function addition(cell: View, value: View, label: string): Instruction {
  const attributes = [1, elementOps.add.code, elementType(cell.dtype), 0, 1, 0, 1, 2];
  return { kernel: "elementwise", inputs: [cell, value], outputs: [cell], attributes, label };
}

/** A start that many rows further on. */
function later(start: Attribute, rows: number): Attribute {
  if (typeof start === "number" || "float" in start) throw new TypeError("a table's start is a table entry");
  const { table } = start;
  if (table.kind === "literal") return { table: { ...table, value: table.value + rows } };
  if (table.kind === "start") return { table: { ...table, plus: (table.plus ?? 0) + rows } };
  throw new TypeError(`${table.kind} is no start`);
}

/** True when an output covers all of its buffer, contiguously, as the value does. */
function wholeBuffer(output: View, bytes: number, value: View): boolean {
  const count = (v: View): number => v.dims.reduce((a, b) => a * b, 1);
  return output.offset === 0 && isContiguous(output) && count(output) === count(value) && bytes > 0;
}

/** The instruction adding to its result's memory; null for kernels that cannot. */
function accumulating(maker: Instruction): Instruction | null {
  if (maker.kernel !== "matmul" || maker.attributes[0] !== 0) return null;
  return { ...maker, attributes: [accumulateFlag, ...maker.attributes.slice(1)] };
}
