// Flags that several verbs share.
import { choiceFlag, integerFlag, valueFlag } from "./flags.ts";
import { type MeshSizes, meshFromJson, parseMesh } from "./mesh-flag.ts";

export const meshFlag = valueFlag<MeshSizes>({
  help: "axes and sizes of the device mesh: dp (data), tp (tensor), pp (pipeline), fsdp, cp (context), ep (expert)",
  value: "dp=2,tp=2,...",
  expected: "axes and sizes such as dp=2,tp=2",
  defaultText: "one device",
  parse: parseMesh,
  fromJson: meshFromJson,
});

export const deviceFlag = choiceFlag(["auto", "cpu", "cuda"], {
  help: "where to run; cpu makes as many virtual devices as the mesh needs",
  default: "auto",
});

export const precisionFlag = choiceFlag(["f32", "bf16", "fp16"], {
  help: "type to compute in; master weights and optimizer stay float32",
  defaultText: "bf16 on GPUs and processors with AMX, f32 on others",
});

export const seedFlag = integerFlag({ help: "picks weights, data order and dropout, or samples", min: 0, default: 0 });

export const logFlag = choiceFlag(["text", "json"], {
  help: "json: one JSON object a line on standard output",
  default: "text",
});
