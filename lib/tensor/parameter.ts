// Parameter: a named cell that holds a tensor across steps. Reading it in a traced function makes a `parameter` node.
import { expectObject, expectSizes } from "../core/check.ts";
import type { DType, StorageArray } from "../core/dtype.ts";
import { ShapeError } from "../core/errors.ts";
import { type Shape, sameShape, shapeText, sizeOf } from "../core/shape.ts";
import type { PartitionSpec } from "../ir/spec.ts";
import { type Readable, Tensor, type TensorContext } from "./tensor.ts";

/**
 * How a fresh parameter is filled. Random values depend on the seed, the parameter's path and the element's index only.
 */
export type Initial =
  | { readonly kind: "constant"; readonly value: number }
  | { readonly kind: "normal"; readonly std: number; readonly mean?: number }
  | { readonly kind: "uniform"; readonly low: number; readonly high: number };

/** A tensor on disk: the parameter's inner form is a reshape of it, or of several one after the other. */
export interface Stored {
  readonly name: string;
  readonly shape: Shape;
}

/** What a parameter is made from. */
export interface ParameterOptions {
  readonly shape: Shape;
  readonly initial: Initial;
  readonly dtype?: DType;
  /** How the mesh splits it; axes the mesh lacks are ignored. */
  readonly spec?: PartitionSpec;
  /**
   * Name and shape in files; by default the path and the inner shape. `parts`: the names of the tensors that it is
   * stacked from, along dim 0, by the parameter's path (the experts of a layer).
   */
  readonly stored?: {
    readonly name?: string;
    readonly shape: Shape;
    readonly parts?: (path: string) => readonly string[];
  };
  /** Frozen parameters get no gradient and no update. */
  readonly frozen?: boolean;
}

let created = 0;

/** A cell of a model. Its values live on a mesh once the model is placed there. */
export class Parameter implements Readable {
  readonly #number = created++;
  /** Module path and name, set when the model is named: "h.0.attn.c_attn.weight". */
  path = "";
  readonly shape: Shape;
  readonly dtype: DType;
  readonly initial: Initial;
  readonly spec: PartitionSpec;
  frozen: boolean;
  /** Values given from outside (a file), whole, in the inner form; taken when the model is placed. */
  loaded: StorageArray | null = null;
  readonly #stored: ParameterOptions["stored"];

  constructor(options: ParameterOptions) {
    expectObject("a parameter's options", options);
    expectSizes("the shape of a parameter", options.shape);
    this.shape = [...options.shape];
    this.dtype = options.dtype ?? "f32";
    this.initial = options.initial;
    this.spec = options.spec ?? [];
    this.frozen = options.frozen ?? false;
    this.#stored = options.stored;
    if (options.stored && sizeOf(options.stored.shape) !== sizeOf(this.shape)) {
      throw new ShapeError(
        `stored shape ${shapeText(options.stored.shape)} of a parameter is no reshape of its shape ${shapeText(this.shape)}`,
      );
    }
  }

  /** Names it on a mesh: unlike the path, unique among all models. */
  get id(): string {
    return `${this.path}@${this.#number}`;
  }

  /** Name and shape as a whole. */
  get stored(): Stored {
    return { name: this.#stored?.name ?? this.path, shape: this.#stored?.shape ?? this.shape };
  }

  /** The tensors of a model folder that it is made of: itself, or those that are stacked in it, in order. */
  get parts(): readonly Stored[] {
    const { shape } = this.stored;
    return this.#stored?.parts?.(this.path).map((name) => ({ name, shape: shape.slice(1) })) ?? [this.stored];
  }

  /** Whether weight decay applies: to what is stored with two or more dims. */
  get decays(): boolean {
    return this.parts[0]!.shape.length >= 2;
  }

  /** The parameter's value in a trace. Every read is a use of its own. */
  read(context: TensorContext): Tensor {
    const params = { id: this.id, dtype: this.dtype, shape: [...this.shape] };
    return new Tensor(context.builder.one("parameter", [], params), context);
  }

  /** Gives the values, in the stored or the inner form. Throws ShapeError for another number of elements. */
  load(values: StorageArray, shape: Shape): void {
    if (!sameShape(shape, this.stored.shape) && !sameShape(shape, this.shape)) {
      throw new ShapeError(
        `${this.stored.name} has shape ${shapeText(this.stored.shape)}, the given values ${shapeText(shape)}`,
      );
    }
    this.loaded = values;
  }
}
