// What a record's lowering sees: views of local buffers, and a way to emit kernel instructions on them.
import type { DType } from "../core/dtype.ts";
import type { Shape } from "../core/shape.ts";
import type { TensorType } from "./graph.ts";
import type { ValueSpec } from "./spec.ts";

/** A place in a buffer of the program: what an operand reads or writes. */
export interface View {
  /** Number of the program's virtual buffer. */
  readonly buffer: number;
  readonly dtype: DType;
  /** First element, in elements of the dtype. */
  readonly offset: number;
  readonly dims: readonly number[];
  /** In elements; 0 repeats. */
  readonly strides: readonly number[];
}

/**
 * A number that differs between devices or microbatches; it becomes a word of the constant table ("counts": one per
 * rank). start: where this device's part of a dim of this size begins, counted from where the part over the `outer`
 * axes begins (`axes` includes them, first), `plus` so many. counts: the sizes of the parts that the ranks of `axes`
 * hold within the part over `outer`, each times `each`. ring: the same where every rank gives its whole part to the
 * next ("send") or gets that of the one before ("receive"): 0 for all others.
 */
export type TableEntry =
  | {
      readonly kind: "start";
      readonly size: number;
      readonly axes: readonly string[];
      readonly outer?: readonly string[];
      readonly plus?: number;
    }
  | { readonly kind: "group"; readonly axes: readonly string[]; readonly stages?: readonly number[] }
  | {
      readonly kind: "counts";
      readonly size: number;
      readonly axes: readonly string[];
      readonly outer: readonly string[];
      readonly each?: number;
    }
  | {
      readonly kind: "ring";
      readonly size: number;
      readonly axis: string;
      readonly outer: readonly string[];
      readonly side: "send" | "receive";
    }
  | { readonly kind: "literal"; readonly value: number };

/** An attribute of an instruction: an int word, a float constant, or table words. */
export type Attribute = number | { readonly float: number } | { readonly table: TableEntry };

/** One node being lowered, with local shapes. */
export interface LowerContext<P> {
  readonly params: P;
  readonly inputs: readonly View[];
  /** Local types of the outputs. */
  readonly outputTypes: readonly TensorType[];
  /** Global types and specs of inputs and outputs, for what depends on where the shard lies. */
  readonly globalInputs: readonly TensorType[];
  readonly globalOutputs: readonly TensorType[];
  readonly inputSpecs: readonly ValueSpec[];
  readonly outputSpecs: readonly ValueSpec[];
  /** A fresh contiguous buffer for output i (the same one each time it is asked). */
  output(i: number): View;
  /** Output i is this view of an existing buffer: nothing is computed. */
  alias(i: number, view: View): void;
  /** A fresh contiguous temporary. */
  temporary(dtype: DType, dims: Shape): View;
  /** Output i overwrites the memory of input j (updates in place). Returns the view. */
  inPlace(i: number, j: number): View;
  /** The same elements, contiguous: the view itself, or a copy. */
  contiguous(view: View): View;
  /** Emits one instruction. Attributes in the signature's order, then the rest. */
  emit(kernel: string, inputs: readonly View[], outputs: readonly View[], attributes?: readonly Attribute[]): void;
}

/** Turns one node into instructions. */
export type Lowering<P> = (context: LowerContext<P>) => void;
