// The signature of a native kernel: what an instruction's operands and attribute words mean. native/core/opcodes.h is
// generated from these.

/**
 * How one attribute word is read: a literal int32, an index into the program's floats, or an index into the device's
 * table.
 */
export type AttrKind = "int" | "float" | "table";

/** One native kernel, as programs name it. */
export interface KernelSignature<Name extends string = string> {
  readonly name: Name;
  /** What the kernel computes, with the dims of its operands. Printed into opcodes.h. */
  readonly doc: string;
  /**
   * Names of the input and output operands, in order; a name ending in "?" may be left out from there on, "*" repeats.
   */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** Named attribute words in order. */
  readonly attrs: Readonly<Record<string, AttrKind>>;
  /** Kind of further attribute words after the named ones; none are allowed when absent. */
  readonly rest?: AttrKind;
}

/** States a kernel's signature. */
export function defineKernel<const Name extends string>(signature: KernelSignature<Name>): KernelSignature<Name> {
  return signature;
}
