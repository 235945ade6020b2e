// Placing a model on a mesh: which stage runs which module, and where every parameter and its optimizer state lies.
import { expectObject } from "../core/check.ts";
import type { StorageArray } from "../core/dtype.ts";
import { PlanError } from "../core/errors.ts";
import { siteHash } from "../core/random.ts";
import { type ValueSpec, axisName, toValueSpec } from "../ir/spec.ts";
import { upTo } from "../passes/schedule.ts";
import { type StageAssignment, assignStages } from "../passes/stages.ts";
import { expectMesh, type Mesh } from "../tensor/mesh.ts";
import { expectPlaceable } from "./check.ts";
import type { Initial, Parameter } from "../tensor/parameter.ts";
import { Tensor } from "../tensor/tensor.ts";
import { lossScaleSpec } from "./loss-scale.ts";
import { defaultZero, splitByFsdp, withoutFsdp, type ZeroLevel } from "./zero.ts";

/** What can be placed: a model with parameters and, for pipelines, blocks in order. */
export interface Placeable {
  parameters(): readonly Parameter[];
  /** Modules that are not split over stages, in the order data flows, with their relative cost. */
  pipelineBlocks?(): readonly { readonly path: string; readonly cost: number }[];
}

/** How a model is placed. */
export interface PlacementOptions {
  readonly stageOf?: ((path: string) => number) | undefined;
  readonly zero?: ZeroLevel | undefined;
  readonly deviceOfStage?: readonly number[];
}

/** Where a model lies on a mesh. */
export class Placement {
  readonly mesh: Mesh;
  readonly parameters: readonly Parameter[];
  readonly stages: StageAssignment;
  /** Coordinate along pp of the devices that hold each stage. */
  readonly deviceOfStage: readonly number[];
  readonly zero: ZeroLevel;
  readonly #byId: ReadonlyMap<string, Parameter>;

  /**
   * `stageOf` places modules by the user's choice; else blocks are balanced by their cost. `zero` says what the fsdp
   * axis splits, `deviceOfStage` the coordinate along pp of each stage: one stage a coordinate by default. Throws
   * PlanError.
   */
  constructor(mesh: Mesh, model: Placeable, options: PlacementOptions = {}) {
    expectMesh("the mesh to place a model on", mesh);
    expectPlaceable(model);
    expectObject("options of placing", options);
    const { stageOf, zero = defaultZero, deviceOfStage = upTo(mesh.layout.size("pp")) } = options;
    this.mesh = mesh;
    this.deviceOfStage = deviceOfStage;
    this.zero = zero;
    this.parameters = model.parameters();
    this.#byId = new Map(this.parameters.map((p) => [p.id, p]));
    const experts = this.parameters.some((p) => p.spec.flat().includes("ep"));
    if (mesh.layout.size("ep") > 1 && !experts) {
      throw new PlanError(
        `mesh ${mesh.layout}: axis ep splits experts, of which the model has none; leave it out, or use dp`,
        {
          details: { axis: "ep" },
        },
      );
    }
    const blocks = model.pipelineBlocks?.() ?? [{ path: "", cost: 1 }];
    this.stages = assignStages(blocks, deviceOfStage.length, stageOf);
  }

  /**
   * Places a whole model for inference: every parameter on the stage of its path (tied ones on each stage that reads
   * them).
   */
  static async of(mesh: Mesh, model: Placeable, seed = 0): Promise<Placement> {
    const placement = new Placement(mesh, model);
    const all = upTo(mesh.layout.size("pp"));
    for (const parameter of placement.parameters) await placement.place(parameter, all, seed);
    return placement;
  }

  /** The spec with which a parameter is used on this mesh: axes the mesh lacks split nothing. */
  usedSpec(parameter: Parameter): ValueSpec {
    return withoutFsdp(this.#wished(parameter));
  }

  /** The spec in which a parameter lies on the devices. */
  spec(parameter: Parameter): ValueSpec {
    return this.zero === 3 ? this.stateSpec(parameter) : this.usedSpec(parameter);
  }

  /** The spec of a parameter's optimizer state. */
  stateSpec(parameter: Parameter): ValueSpec {
    const used = this.usedSpec(parameter);
    const d = this.#wished(parameter).dims.findIndex((axes) => axes.includes("fsdp"));
    if (d < 0) return splitByFsdp(parameter.shape, used, this.mesh.layout);
    return { ...used, dims: used.dims.map((axes, i) => (i === d ? [...axes, "fsdp"] : axes)) };
  }

  /** True when gradients are split as the optimizer's state is, in every microbatch. */
  get splitsGradients(): boolean {
    return this.zero > 1 && this.mesh.layout.size("fsdp") > 1;
  }

  #wished(parameter: Parameter): ValueSpec {
    const wished = toValueSpec(parameter.spec, parameter.shape.length);
    const dims = wished.dims.map((axes) => axes.filter((a) => this.mesh.layout.size(axisName(a)) > 1));
    return { dims, partial: {} };
  }

  /**
   * A parameter of the model by id, or the one of an optimizer state. Throws PlanError for one that is not placed here.
   */
  parameterOf(id: string): Parameter {
    const parameter = this.#byId.get(id.split(":")[0]!);
    if (parameter) return parameter;
    throw new PlanError(`the function reads parameter ${id.split("@")[0]}, which is none of the model's`);
  }

  /** The spec of a parameter that a graph reads, or of its optimizer state, as it lies. Throws as parameterOf does. */
  specOf(id: string): ValueSpec {
    const scale = lossScaleSpec(id);
    if (scale) return scale;
    const parameter = this.parameterOf(id);
    return id === parameter.id ? this.spec(parameter) : this.stateSpec(parameter);
  }

  /** The spec with which graphs use a parameter, or a state of the optimizer. Throws as parameterOf does. */
  usedSpecOf(id: string): ValueSpec {
    return lossScaleSpec(id) ?? this.usedSpec(this.parameterOf(id));
  }

  /** Allocates a parameter (and fills it: with loaded values, or afresh) at these coordinates along pp. */
  async place(parameter: Parameter, columns: readonly number[], seed: number): Promise<void> {
    const { store } = this.mesh;
    if (store.has(parameter.id)) return;
    store.allocate(parameter.id, {
      dtype: parameter.dtype,
      shape: parameter.shape,
      spec: this.spec(parameter),
      columns,
    });
    store.write(parameter.id, parameter.loaded ?? (await initialValues(this.mesh, parameter, seed)));
    parameter.loaded = null;
  }
}

/** Fresh values of a parameter: they depend on the seed, its path and each element's index only, not on the mesh. */
export async function initialValues(mesh: Mesh, parameter: Parameter, seed: number): Promise<StorageArray> {
  const { shape, dtype, initial, path } = parameter;
  if (initial.kind === "constant") return mesh.full(shape, initial.value, dtype).data();
  const key = mesh.tensor(seedWords(seed), { dtype: "i32" });
  const params = { kind: initial.kind, dtype, shape: [...shape], site: siteHash(path), indexed: [] };
  const drawn = new Tensor(mesh.builder.one("random", [key.sym], params), mesh);
  return scaled(drawn, initial).data();
}

function scaled(drawn: Tensor, initial: Exclude<Initial, { kind: "constant" }>): Tensor {
  if (initial.kind === "normal") return drawn.mul(initial.std).add(initial.mean ?? 0);
  return drawn.mul(initial.high - initial.low).add(initial.low);
}

/** The key of random ops: seed low, seed high, step. */
export function seedWords(seed: number, step = 0): [number, number, number] {
  return [seed | 0, Math.floor(seed / 2 ** 32) | 0, step];
}
