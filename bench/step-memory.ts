// Three training steps in a process of their own: prints its peak resident memory. Usage: step-memory.ts WORKLOAD
// f32|bf16
import { Mesh, nn, trainStep } from "../lib/index.ts";
import { batchOf, stepOptions, workloads } from "./models.ts";

const [name = "", precision = "f32"] = process.argv.slice(2);
const work = Object.entries(workloads).find(([known]) => known === name)?.[1];
if (!work) throw new Error(`no workload is named ${name}`);
await using mesh = await Mesh.open({ device: "cpu" });
const model = new nn.GPT2(work.config);
const options = { ...stepOptions(model, work), precision: precision === "bf16" ? "bf16" : "f32" } as const;
using step = await trainStep(mesh, model, options);
const batch = batchOf(work);
for (let i = 0; i < 3; i++) await step.run(batch);
const planned = step.plan.devices.reduce((sum, { bytes }) => sum + bytes, 0);
console.log(JSON.stringify({ bytes: process.resourceUsage().maxRSS * 1024, planned }));
