// A program of one instruction on bound buffers of one device; the other devices of the mesh have nothing to do.
import type { DType } from "../core/dtype.ts";
import type { Attribute, View } from "../ir/lowering.ts";
import { runOf } from "../passes/device-action.ts";
import { type DeviceTable, encodeProgram, encodeSegments } from "../passes/encode.ts";
import { ProgramBuilder } from "../passes/lower.ts";
import { planMemory } from "../passes/memory.ts";
import type { Engine, Executable } from "../runtime/engine.ts";

/** A buffer of a device, and how an operand sees it. */
export interface OperandView {
  readonly handle: number;
  readonly bytes: number;
  readonly dtype: DType;
  readonly dims: readonly number[];
  readonly strides: readonly number[];
  readonly offset: number;
}

/** What to run. */
export interface SingleInstruction {
  readonly kernel: string;
  readonly inputs: readonly OperandView[];
  readonly outputs: readonly OperandView[];
  readonly attributes: readonly Attribute[];
  readonly times: number;
}

const noTable: DeviceTable = {
  words: (entry) => (entry.kind === "literal" ? [entry.value] : []),
  group: () => [],
};

function encoded(program: ProgramBuilder, segment: number, boundBytes: readonly number[]): Int32Array {
  const actions = [runOf(segment)];
  const code = encodeSegments(program, planMemory(program, actions), boundBytes);
  return encodeProgram(code, actions, noTable, 1);
}

/** An instruction loaded on one device. */
export class LoadedInstruction implements Disposable {
  readonly #engine: Engine;
  readonly #executable: Executable;

  /** Throws ProgramError for what the kernel's check refuses. */
  constructor(engine: Engine, rank: number, sizes: Readonly<Record<string, number>>, single: SingleInstruction) {
    this.#engine = engine;
    const operands = [...single.inputs, ...single.outputs];
    const bound = [...new Map(operands.map((o) => [o.handle, o.bytes]))];
    const program = new ProgramBuilder(sizes);
    const segment = program.segment(single.kernel);
    const viewOf = ({ handle, dtype, dims, strides, offset }: OperandView): View => {
      const index = bound.findIndex(([own]) => own === handle);
      return { ...program.allocate(dtype, dims, { bound: index }), strides, offset };
    };
    const { kernel, attributes } = single;
    const [inputs, outputs] = [single.inputs.map(viewOf), single.outputs.map(viewOf)];
    for (let i = 0; i < single.times; i++) {
      program.emit(segment, { kernel, inputs, outputs, attributes, label: kernel });
    }
    const idle = new ProgramBuilder(sizes);
    const nothing = encoded(idle, idle.segment(kernel), []);
    const own = encoded(
      program,
      segment,
      bound.map(([, bytes]) => bytes),
    );
    const ranks = Array.from({ length: engine.devices }, (_, r) => r);
    this.#executable = engine.load({
      programs: ranks.map((r) => (r === rank ? own : nothing)),
      buffers: ranks.map((r) => Int32Array.from(r === rank ? bound.map(([handle]) => handle) : [])),
      inputBytes: 0,
      outputBytes: 0,
    });
  }

  /** Resolves with the seconds of the run by the device's clock. */
  async run(): Promise<number> {
    await this.#executable.run();
    return this.#engine.stats().lastSeconds;
  }

  [Symbol.dispose](): void {
    this.#executable[Symbol.dispose]();
  }
}
