// Depositing a microbatch's result in its cell: where one instruction alone makes the result, it writes the cell
// itself.
import type { View } from "../ir/lowering.ts";
import { elementOps } from "../ops/kernels.ts";
import { isContiguous, type Instruction, type ProgramBuilder } from "../passes/lower.ts";
import { elementType } from "./element-type.ts";

/** Flag of the matmul kernel: add to what the result's memory holds. */
const accumulateFlag = 1;

/**
 * Puts results into cells, once a run ("store") or adding up over microbatches ("add"; cells are then zeroed first).
 */
export class Depositor {
  readonly #program: ProgramBuilder;
  readonly #mode: "store" | "add";
  /** Buffers whose maker writes a cell instead. */
  readonly #moved = new Map<number, View>();

  constructor(program: ProgramBuilder, mode: "store" | "add") {
    this.#program = program;
    this.#mode = mode;
  }

  deposit(segment: number, cell: View, value: View, label: string): void {
    const moved = this.#moved.get(value.buffer);
    const from = moved ? { ...value, buffer: moved.buffer } : value;
    if (!moved && this.#redirect(segment, cell, value)) return;
    if (this.#mode === "store") this.#program.copy(segment, from, cell, label);
    else {
      this.#program.emit(segment, {
        kernel: "elementwise",
        inputs: [cell, from],
        outputs: [cell],
        attributes: [1, elementOps.add.code, elementType(cell.dtype), 0, 1, 0, 1, 2],
        label,
      });
    }
  }

  /** Lets the only instruction that touches the value's buffer write the cell. False where that cannot be. */
  #redirect(segment: number, cell: View, value: View): boolean {
    const buffer = this.#program.buffers[value.buffer]!;
    const use = buffer.uses.get(segment);
    const own = buffer.home === "auto" && buffer.uses.size === 1 && use !== undefined && use.first === use.last;
    const { instructions } = this.#program.segments[segment]!;
    if (!own || value.offset !== 0 || !isContiguous(value) || value.dtype !== cell.dtype) return false;
    const maker = instructions[use.first]!;
    const output = maker.outputs.findIndex((v) => v.buffer === value.buffer);
    const once = [...maker.inputs, ...maker.outputs].filter((v) => v.buffer === value.buffer).length === 1;
    if (output < 0 || !once || !wholeBuffer(maker.outputs[output]!, buffer.bytes, value)) return false;
    const added = this.#mode === "add" ? accumulating(maker) : maker;
    if (!added) return false;
    const outputs = added.outputs.map((v, i) => (i === output ? { ...v, buffer: cell.buffer } : v));
    instructions[use.first] = { ...added, outputs };
    buffer.uses.clear();
    this.#program.touch(cell, segment, use.first);
    this.#moved.set(value.buffer, cell);
    return true;
  }
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
