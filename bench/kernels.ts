// Single kernels as programs of one instruction: time, arithmetic, memory traffic, and a look at what they give.
import { type DType, dtypeSize, fromStorage, toStorage } from "../lib/core/dtype.ts";
import { type Device, type KernelOperand, Mesh } from "../lib/index.ts";
import { chosen, everything, type Selection } from "./flags.ts";
import { caseNames, type KernelCase, kernelCase, type OperandShape } from "./kernel-cases.ts";
import { repeat } from "./measure.ts";
import { digits, type Row, type Table } from "./report.ts";

/** So many elements of the first result are held against float64. */
const SAMPLES = 256;

/** Relative to the largest magnitude that is expected. */
const tolerance: Readonly<Record<DType, number>> = { f64: 1e-9, f32: 1e-4, bf16: 3e-2, f16: 4e-3, i32: 0, bool: 0 };

function elements(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

async function operandOn(device: Device, operand: OperandShape, dtype: DType): Promise<KernelOperand> {
  const type = operand.dtype ?? dtype;
  const length = elements(operand.shape);
  const buffer = device.allocate(type, length);
  const { values } = operand;
  if (values)
    await buffer.write(
      toStorage(
        type,
        Array.from({ length }, (_, i) => values(i)),
      ),
    );
  return { buffer, shape: operand.shape, ...(operand.strides ? { strides: operand.strides } : {}) };
}

/** Elements of the first result, out of some evenly chosen ones, that are not what they should be; "" where unknown. */
function wrongOf(got: readonly number[], own: KernelCase, dtype: DType): number | string {
  const { expected } = own;
  if (!expected) return "";
  const step = Math.max(1, Math.floor(got.length / SAMPLES));
  const at = Array.from({ length: Math.min(SAMPLES, got.length) }, (_, i) => i * step);
  const wanted = at.map(expected);
  const scale = Math.max(1e-30, ...wanted.map(Math.abs));
  return at.filter((i, k) => !(Math.abs(got[i]! - wanted[k]!) <= tolerance[dtype] * scale)).length;
}

async function measure(device: Device, own: KernelCase, dtype: DType): Promise<Row> {
  const inputs: KernelOperand[] = [];
  for (const operand of own.inputs) inputs.push(await operandOn(device, operand, dtype));
  const outputs: KernelOperand[] = [];
  for (const operand of own.outputs) {
    const { inPlace } = operand;
    outputs.push(inPlace === undefined ? await operandOn(device, operand, dtype) : inputs[inPlace]!);
  }
  const bytes = own.outputs[0]!.shape.reduce((a, b) => a * b, dtypeSize(own.outputs[0]!.dtype ?? dtype));
  const load = (times: number) => {
    const { attributes = {}, more = [] } = own;
    return device.kernel(own.kernel, { inputs, outputs, attributes, more, times });
  };
  using once = load(1);
  await once.run();
  const wrong = wrongOf(fromStorage(outputs[0]!.buffer.dtype, await outputs[0]!.buffer.read()), own, dtype);
  const times = Math.max(1, Math.min(200, Math.round(0.01 / (await once.run()))));
  using loaded = load(times);
  const { median, least } = await repeat(9, async () => (await loaded.run()) / times);
  for (const { buffer } of [...inputs, ...outputs]) buffer[Symbol.dispose]();
  return {
    kernel: own.name,
    "size B": bytes,
    dims: own.dims,
    type: dtype,
    "time us": digits(median * 1e6),
    "least us": digits(least * 1e6),
    "GFLOP/s": own.flops === undefined ? "" : digits(own.flops / least / 1e9),
    "GB/s": digits(own.bytes / least / 1e9),
    wrong,
  };
}

/** By default every case in f32 and bf16, with results of 1 and 16 MiB, on one device with all cores. */
export async function benchKernels(asked: Selection = everything): Promise<Table> {
  const { device, types = ["f32", "bf16"], sizes = [2 ** 20, 2 ** 24] } = asked;
  await using mesh = await Mesh.open({ device });
  const rows: Row[] = [];
  for (const name of chosen(caseNames, asked.ops, "kernel")) {
    for (const type of types) {
      for (const bytes of sizes) {
        const own = kernelCase(name, type, bytes);
        if (own) rows.push(await measure(mesh.device(0), own, type));
      }
    }
  }
  return {
    title: "Kernels of one device",
    note: "One instruction, several in a row in one program; time is the run's by the device's clock, divided. Rates are of the least time; bytes are those that must move.",
    rows,
  };
}
