// Mesh: named axes over devices, the tensors that live there, and the evaluation of lazy ones.
import { expectDType, expectObject, expectSizes } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { type DType, type StorageArray, toStorage } from "../core/dtype.ts";
import { DTypeError, MeshError, ShapeError } from "../core/errors.ts";
import { type Shape, shapeText, sizeOf } from "../core/shape.ts";
import { LoadedStep } from "../compile/load.ts";
import { compile } from "../compile/background.ts";
import { type CompiledStep, functionSource, parameterSpecs } from "../compile/step.ts";
import type { Graph } from "../ir/graph.ts";
import { MeshLayout } from "../ir/mesh.ts";
import { type PartitionSpec, axisName, toValueSpec } from "../ir/spec.ts";
import { forwardOnly } from "../passes/schedules.ts";
import { bestDevice, type DeviceKind, Engine } from "../runtime/engine.ts";
import { PersistentStore } from "../runtime/persistent.ts";
import { Device } from "./device.ts";
import { Group } from "./group.ts";
import { type Nested, Tensor, type TensorContext, flattenNested } from "./tensor.ts";
import { SymBuilder, type SymNode, flatten, reachable } from "./trace.ts";

/** How a mesh is opened. */
export interface MeshOptions<Axis extends string = string> {
  /** "auto" takes CUDA devices where there are any, else virtual CPU devices; "null" computes nothing (planning). */
  readonly device?: "auto" | DeviceKind;
  /** Sizes of the axes; one device when empty. */
  readonly axes?: Readonly<Partial<Record<Axis, number>>>;
  /** Threads of each CPU device; the cores are shared out by default. */
  readonly threads?: number;
  /** Keeps every thread of CPU devices on a core of its own, as far as there are cores (Linux). */
  readonly pin?: boolean;
  /** Sends wait for their receives (tests of schedules). */
  readonly unbuffered?: boolean;
  /** Longest time nothing may move while ranks wait for each other, in ms. */
  readonly timeoutMs?: number;
}

/** How a tensor is made. */
export interface TensorOptions<Axis extends string = string> {
  readonly dtype?: DType;
  /** How the mesh splits it; whole on every device by default. */
  readonly spec?: PartitionSpec<Axis>;
}

/** Devices with named axes. Close it (or `using`) to stop their threads and free their memory. */
export class Mesh<Axis extends string = string> implements TensorContext, AsyncDisposable {
  readonly layout: MeshLayout;
  readonly engine: Engine;
  readonly store: PersistentStore;
  readonly builder = new SymBuilder();
  readonly #cache = new Map<string, CompiledStep | Promise<CompiledStep>>();
  readonly #registry: FinalizationRegistry<string>;
  #tensors = 0;

  private constructor(layout: MeshLayout, engine: Engine) {
    this.layout = layout;
    this.engine = engine;
    this.store = new PersistentStore(engine, layout);
    this.#registry = new FinalizationRegistry((id) => this.store.free(id));
  }

  /** Opens the devices of a mesh. Throws MeshError for sizes that make no mesh, DeviceError without such devices. */
  static async open<const A extends string = never>(options: MeshOptions<A> = {}): Promise<Mesh<A>> {
    checkOptions(options);
    const layout = new MeshLayout({ ...options.axes });
    const device = options.device === undefined || options.device === "auto" ? bestDevice() : options.device;
    const engine = new Engine({
      device,
      devices: layout.devices,
      ...(options.threads === undefined ? {} : { threads: options.threads }),
      ...(options.pin === undefined ? {} : { pin: options.pin }),
      ...(options.unbuffered === undefined ? {} : { unbuffered: options.unbuffered }),
      ...(options.timeoutMs === undefined ? {} : { timeoutMs: options.timeoutMs }),
    });
    return new Mesh<A>(layout, engine);
  }

  get name(): string {
    return `mesh ${this.layout}`;
  }
  get devices(): number {
    return this.layout.devices;
  }

  /** A tensor from nested arrays of numbers. Throws ShapeError for ragged ones. */
  tensor(values: Nested, options: TensorOptions<Axis> = {}): Tensor {
    const { shape, values: flat } = flattenNested(values);
    return this.fromData(flat, shape, options);
  }

  /** A tensor from row-major elements. */
  fromData(values: ArrayLike<number | boolean>, shape: Shape, options: TensorOptions<Axis> = {}): Tensor {
    expectObject("a tensor's options", options);
    expectValues(values);
    const dtype = options.dtype ?? (typeof values[0] === "boolean" ? "bool" : "f32");
    expectDType("the dtype of a tensor", dtype);
    return this.fromStorage(toStorage(dtype, values), dtype, shape, options.spec);
  }

  /** A tensor from row-major elements in the dtype's storage (bf16: its bits). */
  fromStorage(values: StorageArray, dtype: DType, shape: Shape, spec?: PartitionSpec<Axis>): Tensor {
    expectSizes("the shape of a tensor", shape);
    if (values.length !== sizeOf(shape)) {
      throw new ShapeError(`${values.length} elements do not make a tensor of shape ${shapeText(shape)}`);
    }
    const id = `tensor:${this.#tensors++}`;
    this.store.allocate(id, { dtype, shape, spec: this.valueSpec(spec, shape) });
    this.store.write(id, values);
    const sym = this.builder.one("parameter", [], { id, dtype, shape: [...shape] });
    this.#registry.register(sym.node, id);
    return new Tensor(sym, this);
  }

  /** A user's spec for a shape on this mesh. Throws MeshError naming an axis the mesh lacks. */
  valueSpec(spec: PartitionSpec | undefined, shape: Shape): ReturnType<typeof toValueSpec> {
    checkSpec(spec);
    expectSizes("the shape of a tensor", shape);
    if (spec && spec.length > shape.length) {
      throw new ShapeError(`a spec of ${spec.length} dims for a tensor of shape ${shapeText(shape)}`);
    }
    const value = toValueSpec(spec, shape.length);
    const used = new Set<string>();
    for (const axis of value.dims.flat().map(axisName)) {
      if (!this.layout.axes.includes(axis)) {
        throw new MeshError(`${this.name} has no axis "${axis}"; it has ${this.layout.axes.join(", ") || "none"}`);
      }
      if (used.has(axis)) throw new MeshError(`a spec splits two dims over axis ${axis}`);
      used.add(axis);
    }
    return value;
  }

  full(shape: Shape, value: number, dtype: DType = "f32"): Tensor {
    expectSizes("the shape of a tensor", shape);
    expectDType("the dtype of a tensor", dtype);
    if (typeof value !== "number") throw new DTypeError(`a tensor is filled with a number, not ${describe(value)}`);
    return new Tensor(this.builder.constant(value, dtype, shape), this);
  }
  zeros(shape: Shape, dtype: DType = "f32"): Tensor {
    return this.full(shape, 0, dtype);
  }
  ones(shape: Shape, dtype: DType = "f32"): Tensor {
    return this.full(shape, 1, dtype);
  }

  /** One of the devices: its memory, and kernels on it. Throws MeshError for a number that is none of theirs. */
  device(rank: number): Device {
    return new Device(this, rank);
  }

  /**
   * The groups of devices along some axes: collectives on one array or buffer a device. Throws MeshError for unknown
   * axes.
   */
  group(...axes: Axis[]): Group {
    return new Group(this, axes);
  }

  /** Computes tensors together: one compiled program (cached by structure), one run. */
  async evaluate(tensors: readonly Tensor[]): Promise<StorageArray[]> {
    if (!Array.isArray(tensors)) throw new DTypeError(`evaluate takes a list of tensors, not ${describe(tensors)}`);
    for (const tensor of tensors) {
      if (!(tensor instanceof Tensor)) throw new DTypeError(`evaluate takes tensors, not ${describe(tensor)}`);
      if (tensor.context === this) continue;
      throw new MeshError(`a tensor of ${tensor.context.name} cannot be evaluated on ${this.name}`);
    }
    const outputs = tensors.map((t, i) => ({ name: `out${i}`, sym: t.sym }));
    const leaves = reachable(outputs.map((o) => o.sym)).filter((n) => n.op === "parameter");
    const graph = flatten(outputs);
    const made = this.#compile(graph, leaves);
    // Small graphs run before anything that the caller does next.
    const compiled = made instanceof Promise ? await made : made;
    using loaded = new LoadedStep(this.engine, this.store, compiled);
    const results = await loaded.run({});
    return tensors.map((_, i) => results.get(`out${i}`)!);
  }

  /** The graph's program. Tensors are numbered by first use in the cached form, and bound by their own ids. */
  #compile(graph: Graph, leaves: readonly SymNode[]): CompiledStep | Promise<CompiledStep> {
    const number = new Map(leaves.map((n, i) => [n.params.id as string, `leaf${i}`]));
    const id = new Map([...number].map(([own, canonical]) => [canonical, own]));
    const nodes = graph.nodes.map((n) =>
      n.op === "parameter" ? { ...n, params: { ...n.params, id: number.get(n.params.id as string)! } } : n,
    );
    const canonical: Graph = { ...graph, nodes };
    const specs = [...id].map(([name, own]) => [name, this.store.type(own).spec]);
    const key = JSON.stringify([nodes, graph.outputs, specs], exactNumber);
    const known =
      this.#cache.get(key) ?? this.#compileCanonical(canonical, (name) => this.store.type(id.get(name)!).spec);
    this.#cache.set(key, known);
    const bound = (compiled: CompiledStep): CompiledStep => ({
      ...compiled,
      bindings: compiled.bindings.map((ids) => ids.map((name) => id.get(name)!)),
    });
    if (!(known instanceof Promise)) return bound(known);
    return known.then(
      (compiled) => {
        this.#cache.set(key, compiled);
        return bound(compiled);
      },
      (error: unknown) => {
        this.#cache.delete(key);
        throw error;
      },
    );
  }

  #compileCanonical(
    graph: Graph,
    specOf: (id: string) => ReturnType<typeof toValueSpec>,
  ): CompiledStep | Promise<CompiledStep> {
    const source = functionSource(graph);
    return compile(source, {
      layout: this.layout,
      batchSize: 0,
      microbatches: 1,
      schedule: forwardOnly(this.layout.size("pp"), 1),
      stageOfBlock: new Map(),
      parameterSpecs: parameterSpecs(source, specOf),
      passes: { precision: "f32" },
    });
  }

  /** Stops the devices and frees their memory. */
  async close(): Promise<void> {
    this.engine.close();
  }
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** JSON has no NaN, no infinities and no -0: constants that differ must not look alike. */
function exactNumber(_: string, value: unknown): unknown {
  if (typeof value !== "number" || (Number.isFinite(value) && !Object.is(value, -0))) return value;
  return `number ${Object.is(value, -0) ? "-0" : value}`;
}

function expectValues(values: unknown): void {
  if (Array.isArray(values) || (ArrayBuffer.isView(values) && !(values instanceof DataView))) return;
  throw new DTypeError(`a tensor's elements are a list of numbers or a typed array, not ${describe(values)}`);
}

/** Throws MeshError for what is no mesh. */
export function expectMesh(what: string, value: unknown): asserts value is Mesh {
  if (!(value instanceof Mesh)) throw new MeshError(`${what} must be a Mesh, not ${describe(value)}`);
}

const deviceNames: readonly unknown[] = ["auto", "cpu", "cuda", "null", undefined];

function checkOptions(options: MeshOptions): void {
  if (typeof options !== "object" || options === null) {
    throw new MeshError(`Mesh.open takes an object of options, not ${describe(options)}`);
  }
  const { axes = {}, device, threads, timeoutMs, pin, unbuffered } = options;
  if (typeof axes !== "object" || axes === null || Array.isArray(axes)) {
    throw new MeshError(`axes must be an object of sizes such as { dp: 2, tp: 2 }, not ${describe(axes)}`);
  }
  if (!deviceNames.includes(device)) {
    throw new MeshError(`device must be "auto", "cpu", "cuda" or "null", not ${describe(device)}`);
  }
  for (const [name, value, max] of [
    ["threads", threads, 1024],
    ["timeoutMs", timeoutMs, 2 ** 31 - 1],
  ] as const) {
    if (value === undefined || (Number.isInteger(value) && value >= 0 && value <= max)) continue;
    throw new MeshError(`${name} must be a whole number from 0 to ${max}, not ${describe(value)}`);
  }
  for (const [name, value] of Object.entries({ pin, unbuffered })) {
    if (value === undefined || typeof value === "boolean") continue;
    throw new MeshError(`${name} must be true or false, not ${describe(value)}`);
  }
}

function checkSpec(spec: PartitionSpec | undefined): void {
  if (spec === undefined) return;
  const isAxes = (entry: unknown): boolean =>
    entry === null ||
    entry === undefined ||
    typeof entry === "string" ||
    (Array.isArray(entry) && entry.every((axis) => typeof axis === "string"));
  if (Array.isArray(spec) && spec.every(isAxes)) return;
  throw new MeshError(`a spec is a list with axes, a list of axes, or null for each dim, not ${specOf(spec)}`);
}

function specOf(spec: unknown): string {
  return Array.isArray(spec) ? `[${spec.map(describe).join(", ")}]` : describe(spec);
}
