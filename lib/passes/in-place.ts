// Results that may take over an operand's memory: what is not needed after the instruction that reads it makes room for
// what that instruction makes.
import { dtypeSize } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import type { View } from "../ir/lowering.ts";
import { type Instruction, isContiguous, type VirtualBuffer } from "./lower.ts";

/** A buffer that may lie where another one is that ends with the instruction which begins it. */
export interface Takeover {
  readonly taken: number;
  readonly by: number;
}

/** Pairs that an instruction allows, for as long as what is taken is not needed after it nor what takes it before. */
export function takeovers(instruction: Instruction, buffers: readonly VirtualBuffer[]): Takeover[] {
  const { inputs, outputs } = instruction;
  const pairs = pairsOf(instruction);
  return pairs.flatMap(([i, o]) => {
    const [x, y] = [inputs[i]!, outputs[o]!];
    const alike = x.dtype === y.dtype && x.dims.length === y.dims.length && x.dims.every((n, d) => n === y.dims[d]);
    if (!alike || x.buffer === y.buffer || !isWhole(x, buffers) || !isWhole(y, buffers)) return [];
    // Other views of what is overwritten might be read in another order.
    if (inputs.some((v) => v.buffer === x.buffer && !isWhole(v, buffers))) return [];
    if (outputs.some((v, k) => v.buffer === x.buffer || (k !== o && v.buffer === y.buffer))) return [];
    return [{ taken: x.buffer, by: y.buffer }];
  });
}

/** Operands that a kernel allows to be one memory: input and output, by number. */
function pairsOf({ kernel, inputs, outputs, attributes }: Instruction): [number, number][] {
  if (kernel === "all_reduce") {
    // Tensors of a bucket are exchanged one after the other: one that is there twice is read again.
    const once = (i: number): boolean => inputs.filter((v) => v.buffer === inputs[i]!.buffer).length === 1;
    return outputs.flatMap((_, o): [number, number][] => (once(o) ? [[o, o]] : []));
  }
  if (kernel !== "elementwise") return [];
  // Words: a count, so many instructions of 5, the number of outputs, the value of each. An input that is a result
  // itself is read when other results are written already.
  const values = attributes.slice(2 + 5 * (attributes[0] as number)) as number[];
  if (values.some((v) => v < inputs.length)) return [];
  return outputs.flatMap((_, o) => inputs.map((_, i): [number, number] => [i, o]));
}

/** True for a view of all of its buffer, row-major. */
function isWhole(view: View, buffers: readonly VirtualBuffer[]): boolean {
  const bytes = sizeOf(view.dims) * dtypeSize(view.dtype);
  return view.offset === 0 && isContiguous(view) && bytes > 0 && bytes === buffers[view.buffer]!.bytes;
}
