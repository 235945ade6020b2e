// Below tensors: memory of single devices, collectives on it without copies to JavaScript, and single kernels.
// Run with: npx tsx examples/buffers.ts
import { Mesh } from "../lib/index.ts";

await using mesh = await Mesh.open({ axes: { tp: 4 } });
const devices = Array.from({ length: mesh.devices }, (_, rank) => mesh.device(rank));

// Six elements on each device: rank, rank + 1, ...
const inputs = devices.map((device) => device.allocate("f32", 6));
for (const [rank, input] of inputs.entries()) await input.write(Float32Array.from({ length: 6 }, (_, i) => rank + i));

// Loaded once, run as often as wanted, on buffers that are there: here the sum in place.
const tp = mesh.group("tp");
using sum = tp.collective("all_reduce", { inputs, outputs: inputs });
await sum.run();
console.log("summed on every device:", [...(await inputs[3]!.read())].join(" "));

// The same methods that take arrays take buffers, and give new ones.
const parts = await tp.reduceScatter(inputs, "max");
console.log("the parts' lengths:", parts.map((part) => part.length).join(" "));
const whole = await tp.allGather(parts);
console.log("gathered on device 1:", [...(await whole[1]!.read())].join(" "));

// Any kernel of native/core/opcodes.h as a program of one instruction: here the softmax of two rows of three elements.
const [first] = devices;
const probabilities = first!.allocate("f32", 6);
using softmax = first!.kernel("softmax", {
  inputs: [{ buffer: inputs[0]!, shape: [2, 3] }],
  outputs: [{ buffer: probabilities, shape: [2, 3] }],
});
const seconds = await softmax.run();
console.log("softmax:", Array.from(await probabilities.read(), (p) => p.toFixed(3)).join(" "), seconds > 0);

for (const buffer of [...inputs, ...parts, ...whole, probabilities]) buffer[Symbol.dispose]();
