// A single kernel on a device, loaded as a program of one instruction: for benchmarks and tests of kernels.
import { expectInteger, expectList, expectObject, expectSizes } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { ConfigError, DeviceError, ProgramError } from "../core/errors.ts";
import { rowMajorStrides } from "../core/shape.ts";
import { LoadedInstruction, type OperandView } from "../compile/instruction.ts";
import type { KernelSignature } from "../ir/kernel.ts";
import type { Attribute } from "../ir/lowering.ts";
import { type KernelName, kernels } from "../ops/kernels.ts";
import { Buffer } from "./buffer.ts";
import type { Device } from "./device.ts";

/** A kernel's operand: a buffer seen as a tensor. */
export interface KernelOperand {
  readonly buffer: Buffer;
  readonly shape: readonly number[];
  /** In elements; row-major by default, 0 repeats. */
  readonly strides?: readonly number[];
  /** First element. */
  readonly offset?: number;
}

/** Operands and attributes of a kernel: what they mean is said in native/core/opcodes.h. */
export interface KernelOptions {
  readonly inputs: readonly KernelOperand[];
  /** An update in place has the same buffers here and among the inputs. */
  readonly outputs: readonly KernelOperand[];
  /** By name. Of those that are read from a device's table, the number that stands there. */
  readonly attributes?: Readonly<Record<string, number>>;
  /** Attribute words after the named ones: numbers, or constants of the program. */
  readonly more?: readonly (number | { readonly float: number })[];
  /** How often a run does it in a row; once by default. */
  readonly times?: number;
}

const signatures: ReadonlyMap<string, KernelSignature> = new Map(kernels.map((k) => [k.name, k]));

/** A loaded instruction. Use device.kernel(). */
export class Kernel implements Disposable {
  readonly device: Device;
  readonly name: KernelName;
  readonly #loaded: LoadedInstruction;

  constructor(device: Device, name: KernelName, options: KernelOptions) {
    expectObject("a kernel's options", options);
    const { inputs, outputs, times = 1 } = options;
    expectInteger("times", times, 1, 2 ** 20);
    this.device = device;
    this.name = name;
    this.#loaded = new LoadedInstruction(device.mesh.engine, device.rank, device.mesh.layout.sizes, {
      kernel: name,
      inputs: viewsOf(device, "inputs", inputs),
      outputs: viewsOf(device, "outputs", outputs),
      attributes: wordsOf(name, options),
      times,
    });
  }

  /** Runs it `times` times. Resolves with the seconds of the run by the device's clock. */
  async run(): Promise<number> {
    return this.#loaded.run();
  }

  [Symbol.dispose](): void {
    this.#loaded[Symbol.dispose]();
  }
}

function viewsOf(device: Device, what: string, operands: readonly KernelOperand[]): OperandView[] {
  expectList(`a kernel's ${what}`, operands);
  return operands.map((operand, i) => {
    expectObject(`operand ${i} of a kernel's ${what}`, operand);
    const { buffer, shape, strides, offset = 0 } = operand;
    if (!(buffer instanceof Buffer)) {
      throw new ConfigError(`operand ${i} of a kernel's ${what} has a Buffer, not ${describe(buffer)}`);
    }
    if (buffer.device.mesh !== device.mesh || buffer.device.rank !== device.rank) {
      throw new DeviceError(`operand ${i} of a kernel's ${what} is on ${buffer.device}, the kernel on ${device}`);
    }
    expectSizes(`the shape of operand ${i}`, shape);
    if (strides !== undefined) expectSizes(`the strides of operand ${i}`, strides);
    expectInteger(`the offset of operand ${i}`, offset, 0);
    const { handle, bytes, dtype } = buffer;
    return { handle, bytes, dtype, dims: shape, strides: strides ?? rowMajorStrides(shape), offset };
  });
}

/** The attribute words of an instruction. */
function wordsOf(name: string, { attributes = {}, more = [] }: KernelOptions): Attribute[] {
  const signature = signatures.get(name);
  if (signature === undefined) throw new ProgramError(`no kernel is named ${describe(name)}`);
  expectObject(`attributes of ${name}`, attributes);
  expectList(`further attributes of ${name}`, more);
  const unknown = Object.keys(attributes).find((key) => !Object.hasOwn(signature.attrs, key));
  if (unknown !== undefined) throw new ProgramError(`${name} has no attribute ${unknown}`);
  if ("group" in signature.attrs) throw new ProgramError(`${name} is a collective: use mesh.group()`);
  const named = Object.entries(signature.attrs).map(([key, kind]): Attribute => {
    const value = attributes[key];
    if (typeof value !== "number") throw new ProgramError(`${name} needs its attribute ${key}, a number`);
    if (kind === "float") return { float: value };
    if (!Number.isInteger(value)) throw new ProgramError(`${name}: attribute ${key} is a whole number, not ${value}`);
    return kind === "table" ? { table: { kind: "literal", value } } : value;
  });
  return [...named, ...more.map((word, i) => furtherWord(name, word, i))];
}

function furtherWord(name: string, word: number | { readonly float: number }, i: number): Attribute {
  const value: unknown = typeof word === "object" && word !== null ? word.float : word;
  const whole = typeof word === "number";
  if (typeof value === "number" && (!whole || Number.isInteger(value))) return word;
  throw new ProgramError(`${name}: further attribute ${i} is a whole number or { float }, not ${describe(word)}`);
}
