// compile: a function of tensors becomes one program a device, kept by the shapes of its arguments, and run over the
// mesh.
import { LoadedStep } from "../compile/load.ts";
import { compile as compileGraph } from "../compile/background.ts";
import { type CompiledStep, functionSource, parameterSpecs } from "../compile/step.ts";
import type { DType, StorageArray } from "../core/dtype.ts";
import { MeshError, PlanError, ShapeError } from "../core/errors.ts";
import type { Shape } from "../core/shape.ts";
import { type PartitionSpec, type ValueSpec, sameSpec } from "../ir/spec.ts";
import type { Precision } from "../passes/precision.ts";
import { forwardOnly } from "../passes/schedules.ts";
import type { Mesh } from "./mesh.ts";
import { type Nested, Tensor, type TensorContext } from "./tensor.ts";
import { SymBuilder, flatten } from "./trace.ts";

/** What a compiled function may return: a tensor, or several by position or by name. */
export type Results = Tensor | readonly Tensor[] | Readonly<Record<string, Tensor>>;

/** How a function is compiled. */
export interface CompileOptions<Axis extends string = string> {
  /** How the mesh splits each argument; whole on every device where it is missing. */
  readonly in?: readonly PartitionSpec<Axis>[];
  /** How it splits the results that run() places on the mesh, in order; whole where it is missing. */
  readonly out?: readonly PartitionSpec<Axis>[];
  /** Compute type of matmuls; float32 by default. */
  readonly precision?: Precision;
}

/** Arguments of a call: tensors of the mesh, or numbers (float32). */
export type CallArguments<Args extends readonly Tensor[]> = { [K in keyof Args]: Tensor | Nested };

/** The values of results, row-major, in their dtype's storage. */
export type DataOf<R extends Results> = R extends Tensor ? StorageArray : { [K in keyof R]: StorageArray };

interface ResultType {
  readonly dtype: DType;
  readonly shape: Shape;
}

/** A function's program for arguments of given dtypes and shapes. */
interface Variant<R> {
  readonly compiled: CompiledStep;
  readonly loaded: LoadedStep;
  readonly types: readonly ResultType[];
  /** Puts values where the function's results stood. */
  arrange(values: readonly unknown[]): R;
}

/** A function compiled for a mesh. Calls may overlap: they run in order. */
export class CompiledFunction<Args extends readonly Tensor[], R extends Results> implements Disposable {
  readonly #mesh: Mesh;
  readonly #fn: (...args: Args) => R;
  readonly #options: CompileOptions;
  readonly #variants = new Map<string, Promise<Variant<R>>>();
  readonly #loaded = new Set<LoadedStep>();

  /** Use compile(). */
  constructor(mesh: Mesh, fn: (...args: Args) => R, options: CompileOptions) {
    this.#mesh = mesh;
    this.#fn = fn;
    this.#options = options;
  }

  /** Programs compiled so far: one for each combination of dtypes and shapes of the arguments. */
  get programs(): number {
    return this.#variants.size;
  }

  /** Calls it; resolves with the results as tensors of the mesh, split as `out` says. */
  async run(...args: CallArguments<Args>): Promise<R> {
    const { variant, values } = await this.#call(args);
    const tensors = variant.types.map(({ dtype, shape }, i) =>
      this.#mesh.fromStorage(values[i]!, dtype, shape, this.#options.out?.[i]),
    );
    return variant.arrange(tensors);
  }

  /** Calls it; resolves with the results' values, row-major, in their dtype's storage. */
  async data(...args: CallArguments<Args>): Promise<DataOf<R>> {
    const { variant, values } = await this.#call(args);
    return variant.arrange(values) as unknown as DataOf<R>;
  }

  async #call(args: readonly (Tensor | Nested)[]): Promise<{ variant: Variant<R>; values: StorageArray[] }> {
    const placed = await Promise.all(args.map((arg, i) => this.#place(arg, i)));
    const variant = await this.#variant(placed);
    variant.loaded.bind(this.#mesh.store, bindings(variant.compiled, placed));
    const results = await variant.loaded.run({});
    return { variant, values: variant.types.map((_, i) => results.get(`out${i}`)!) };
  }

  /** The argument as a tensor that lies on the mesh as its spec says. */
  async #place(arg: Tensor | Nested, index: number): Promise<Tensor> {
    const spec = this.#options.in?.[index];
    if (!(arg instanceof Tensor)) return this.#mesh.tensor(arg, { spec: spec ?? [] });
    if (arg.context !== this.#mesh) {
      throw new MeshError(`argument ${index} is a tensor of ${arg.context.name}, the function of ${this.#mesh.name}`);
    }
    const { store } = this.#mesh;
    const id = storedId(arg);
    if (id !== null && sameSpec(store.type(id).spec, this.#mesh.valueSpec(spec, arg.shape))) return arg;
    return this.#mesh.fromStorage(await arg.data(), arg.dtype, arg.shape, spec);
  }

  #variant(args: readonly Tensor[]): Promise<Variant<R>> {
    const key = args.map((a) => `${a.dtype}[${a.shape.join()}]`).join(" ");
    let known = this.#variants.get(key);
    if (!known) {
      const made = this.#compile(args);
      this.#variants.set(key, made);
      made.then(
        ({ loaded }) => {
          // Disposed of while it was compiled.
          if (this.#variants.get(key) === made) this.#loaded.add(loaded);
          else loaded[Symbol.dispose]();
        },
        () => this.#variants.delete(key),
      );
      known = made;
    }
    return known;
  }

  async #compile(args: readonly Tensor[]): Promise<Variant<R>> {
    const mesh = this.#mesh;
    const builder = new SymBuilder();
    const context: TensorContext = { builder, name: "a compiled function" };
    const traced = args.map(({ dtype, shape }, i) => {
      return new Tensor(builder.one("parameter", [], { id: argument(i), dtype, shape: [...shape] }), context);
    });
    const results = this.#fn(...(traced as unknown as Args));
    const { list, arrange } = listed(results);
    const graph = flatten(list.map((t, i) => ({ name: `out${i}`, sym: expectTraced(t, context).sym })));
    const specs = new Map(args.map((a, i) => [argument(i), mesh.valueSpec(this.#options.in?.[i], a.shape)]));
    const source = functionSource(graph);
    const compiled = await compileGraph(source, {
      layout: mesh.layout,
      batchSize: 0,
      microbatches: 1,
      schedule: forwardOnly(mesh.layout.size("pp"), 1),
      stageOfBlock: new Map(),
      parameterSpecs: parameterSpecs(source, (id) => specs.get(id) ?? placedSpec(mesh, id)),
      passes: { precision: this.#options.precision ?? "f32" },
    });
    const loaded = new LoadedStep(mesh.engine, mesh.store, { ...compiled, bindings: bindings(compiled, args) });
    return { compiled, loaded, arrange, types: list.map(({ dtype, shape }) => ({ dtype, shape })) };
  }

  /** Unloads the programs. */
  [Symbol.dispose](): void {
    for (const loaded of this.#loaded) loaded[Symbol.dispose]();
    this.#loaded.clear();
    this.#variants.clear();
  }
}

/**
 * Compiles a function of tensors for a mesh. It is traced at the first call with arguments of given dtypes and shapes;
 * later calls only run its program. It may read parameters of models that are placed on the mesh, but no other tensors.
 * Arguments that lie on the mesh as `in` says are used where they are; others are moved there, and results come back,
 * through the host's memory. Calls reject with what tracing and compiling throw: ShapeError, MeshError, PlanError, ...
 */
export function compile<Axis extends string, Args extends readonly Tensor[], R extends Results>(
  mesh: Mesh<Axis>,
  fn: (...args: Args) => R,
  options: CompileOptions<NoInfer<Axis>> = {},
): CompiledFunction<Args, R> {
  return new CompiledFunction(mesh, fn, options);
}

function argument(index: number): string {
  return `arg${index}`;
}

/** Id of the mesh's memory behind a tensor; null for one that is still to be computed. */
function storedId(tensor: Tensor): string | null {
  const { op, params } = tensor.sym.node;
  return op === "parameter" ? (params.id as string) : null;
}

function bindings(compiled: CompiledStep, args: readonly Tensor[]): string[][] {
  const own = new Map(args.map((tensor, i) => [argument(i), storedId(tensor)!]));
  return compiled.bindings.map((ids) => ids.map((id) => own.get(id) ?? id));
}

function placedSpec(mesh: Mesh, id: string): ValueSpec {
  const { spec, columns } = mesh.store.type(id);
  const all = mesh.layout.size("pp");
  if (columns !== undefined && columns.length < all) {
    throw new PlanError(
      `${id.split("@")[0]} lies on devices with pp=${columns.join(", ")} only; a compiled function runs on every device`,
    );
  }
  return spec;
}

function expectTraced(result: unknown, context: TensorContext): Tensor {
  if (!(result instanceof Tensor)) throw new ShapeError("a compiled function returns tensors, in a list or by name");
  if (result.context !== context) {
    throw new MeshError(`a compiled function returned a tensor of ${result.context.name}; pass it as an argument`);
  }
  return result;
}

/** The tensors of a function's results, and how to put others in their places. */
function listed<R extends Results>(results: R): { list: Tensor[]; arrange(values: readonly unknown[]): R } {
  if (results instanceof Tensor) return { list: [results], arrange: (values) => values[0] as R };
  if (Array.isArray(results)) return { list: [...results], arrange: (values) => [...values] as unknown as R };
  const names = Object.keys(results);
  return {
    list: Object.values(results),
    arrange: (values) => Object.fromEntries(names.map((name, i) => [name, values[i]])) as R,
  };
}
