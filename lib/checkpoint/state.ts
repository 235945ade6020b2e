// What a checkpoint keeps: named tensors of a mesh, a step, and a record of whatever else a run needs to go on.
import { describe } from "../core/describe.ts";
import { expectInteger, expectList, expectObject } from "../core/check.ts";
import { ConfigError } from "../core/errors.ts";
import type { JsonObject } from "../core/json.ts";
import type { Shape } from "../core/shape.ts";
import { expectMesh, type Mesh } from "../tensor/mesh.ts";
import { Parameter } from "../tensor/parameter.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Whether a tensor is part of the model or belongs to its optimizer. */
export type TensorRole = "parameter" | "state";

/** A tensor to keep: its name in the checkpoint, and its id in the mesh's store. */
export interface StateTensor {
  readonly name: string;
  readonly id: string;
  readonly role: TensorRole;
  /** Its shape in files of models: a reshape of its own. */
  readonly stored: Shape;
  /** What the tensor's memory lives as long as; nothing is done with it. */
  readonly owner?: object;
}

/** Of the loss scale of precision fp16 and the number of good steps since it changed. */
export const lossScaleName = "optimizer.loss_scale";

/** Names that a checkpoint or a model may lack: left as they are, or out. Others have to be on both sides. */
export const optionalNames: ReadonlySet<string> = new Set([lossScaleName]);

/** Everything to save, or to load into. */
export interface CheckpointState {
  readonly mesh: Mesh;
  /** Steps done. */
  readonly step: number;
  readonly tensors: readonly StateTensor[];
  /** Data position, settings, ...: kept as JSON and given back by loadCheckpoint(). Not read when loading. */
  readonly record?: JsonObject;
}

/** Throws ConfigError or MeshError for what is no state. */
export function expectState(state: CheckpointState): void {
  expectObject("the state of a checkpoint", state);
  expectMesh("a state's mesh", state.mesh);
  expectInteger("a state's step", state.step, 0);
  expectList("a state's tensors", state.tensors);
  for (const tensor of state.tensors) expectObject("a state's tensor", tensor);
}

/**
 * The state of a program without a trainer: tensors made by mesh.tensor() and its like, and placed parameters, by name.
 * Throws ConfigError for a tensor that has no memory of its own (a result that is computed at each read).
 */
export function stateOf(
  mesh: Mesh,
  tensors: Readonly<Record<string, Tensor | Parameter>>,
  more: { readonly step?: number; readonly record?: JsonObject } = {},
): CheckpointState {
  expectMesh("a state's mesh", mesh);
  expectObject("a state's tensors", tensors);
  expectObject("what else a state has", more);
  const list = Object.entries(tensors).map(([name, tensor]): StateTensor => {
    if (tensor instanceof Parameter) {
      return { name, id: tensor.id, role: "parameter", stored: tensor.stored.shape, owner: tensor };
    }
    if (!(tensor instanceof Tensor)) throw new ConfigError(`"${name}" is ${describe(tensor)}, no tensor or parameter`);
    const { node } = tensor.sym;
    if (node.op !== "parameter" || tensor.context !== mesh) {
      throw new ConfigError(`"${name}" is no tensor that ${mesh.name} holds: give mesh.tensor() its values first`);
    }
    return { name, id: String(node.params.id), role: "parameter", stored: tensor.shape, owner: tensor };
  });
  return { mesh, step: more.step ?? 0, tensors: list, ...(more.record ? { record: more.record } : {}) };
}
