// The op record: everything the compiler knows about one op. Leaving a part out does not compile.
import type { Builder } from "./builder.ts";
import type { Params, TensorType } from "./graph.ts";
import type { Lowering } from "./lowering.ts";
import type { ReduceKind, ValueSpec } from "./spec.ts";

/**
 * How an op's dims correspond, as in an einsum: dims with the same factor name are split together.
 * A factor that no output has is contracted: splitting it makes every output partial (see `reduce`).
 */
export interface FactorMap {
  /** Factor of each dim of each input; null: this dim is never split. */
  readonly inputs: readonly (readonly (string | null)[])[];
  readonly outputs: readonly (readonly (string | null)[])[];
  /**
   * How outputs combine when a factor absent from them is split (default sum). A list gives one kind per output; null
   * there: this output does not become partial (it must then not depend on the factor).
   */
  readonly reduce?: Readonly<Record<string, ReduceKind | readonly (ReduceKind | null)[]>>;
  /**
   * These factors may be split over k ranks only when the number given is a multiple of k (the major dim of a reshape).
   */
  readonly divisible?: Readonly<Record<string, number>>;
  /** Factors along which an index has a meaning (iota, the rows of a table): such dims cannot be reordered. */
  readonly ordered?: readonly string[];
  /**
   * Factors of dims that are never split, yet go together when they are reordered (a row of softmax, keys of
   * attention).
   */
  readonly unsplit?: Pick<FactorMap, "inputs" | "outputs">;
  /**
   * Of ops on rows that were dispatched to experts (ValueSpec.routed). `rows`: factors of the rows, by which only rows
   * that lie in a device's own order may be split. `groups`: the factor of experts; rows that have travelled meet the
   * experts of their ranks only, so that no sum over that factor is left to do.
   */
  readonly routed?: { readonly rows: readonly string[]; readonly groups: string };
}

/**
 * How partial (not yet summed) inputs may flow through: "joint": f(a+a', b+b') = f(a,b) + f(a',b'), all inputs partial
 * over the same axes at once; a list of input indices: linear in each of those alone, one may be partial while the
 * others are whole; "none": inputs must be whole.
 */
export type Linearity = "joint" | "none" | readonly number[];

/** What a sharding rule says of an op. */
export interface ShardingRule<P> {
  factors(inputs: readonly TensorType[], outputs: readonly TensorType[], params: P): FactorMap;
  readonly linear: Linearity;
  /**
   * Replaces the op by a subgraph when inputs are split in a way the kernel cannot take (cross-entropy over a split
   * vocabulary), or in a way that a local subgraph of ops and collectives does better (attention over a split
   * sequence); null where the factors suffice.
   */
  decompose?<V>(
    b: Builder<V>,
    inputs: readonly V[],
    specs: readonly ValueSpec[],
    params: P,
    local: LocalBuilder<V>,
  ): V[] | null;
  /** Its results are no larger than its operands: a partial operand is summed behind it (where it is linear in it). */
  readonly shrinks?: boolean;
}

/** What a rule uses to write a local subgraph: ops that every rank runs on the parts it holds. */
export interface LocalBuilder<V> {
  /** Size of a mesh axis, by its name with or without marks; 1 for one the mesh lacks. */
  size(axis: string): number;
  /** The value summed where it is partial, and split like this. */
  split(value: V, dims: readonly (readonly string[])[]): V;
  /**
   * One op on operands as they lie, with results that lie as given: nothing is inserted, so that the rule answers for
   * what it means. A dim is as long as all ranks' parts together.
   */
  emit(op: string, inputs: readonly V[], params: Params, specs: readonly ValueSpec[]): V[];
  /** emit() of an op with one operand and result, which is made once for all who ask, beside its operand. */
  once(op: string, input: V, params: Params, spec: ValueSpec): V;
}

/** Inputs of a gradient rule. */
export interface GradientContext<V, P> {
  readonly inputs: readonly V[];
  readonly outputs: readonly V[];
  /** Cotangent of each output; null: this output does not influence the result. */
  readonly cotangents: readonly (V | null)[];
  readonly params: P;
  /** True for the inputs whose cotangents are wanted. */
  readonly wanted: readonly boolean[];
}

/** A gradient rule, or the statement that there is none and why. */
export type Gradient<P> =
  | { readonly rule: <V>(b: Builder<V>, context: GradientContext<V, P>) => (V | null)[] }
  | { readonly none: string };

/** Work of one execution on the given (local) types. */
export interface Cost {
  readonly flops: number;
  /** Bytes read and written. */
  readonly bytes: number;
}

/** One op. */
export interface OpRecord<P extends Params = Params> {
  readonly name: string;
  /** Result types; throws ShapeError or DTypeError in the user's terms. */
  infer(inputs: readonly TensorType[], params: P): TensorType[];
  readonly sharding: ShardingRule<P>;
  readonly gradient: Gradient<P>;
  cost(inputs: readonly TensorType[], outputs: readonly TensorType[], params: P): Cost;
  readonly lower: Lowering<P>;
}
