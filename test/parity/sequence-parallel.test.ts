// Sequence parallelism against PyTorch's reference runs, through the command: on, beside the same layouts without it.
import { describeWithReference } from "./reference.ts";
import { assertParity } from "./train.ts";

const layouts = ["tp=2", "tp=3", "dp=2,tp=2", "pp=2,tp=2", "cp=2,tp=2", "fsdp=2,tp=2"];

describeWithReference("parity with PyTorch, activations split along the sequence", function () {
  this.timeout(240_000);
  for (const model of ["gpt2", "llama"]) {
    for (const mesh of layouts) {
      it(`${model} under ${mesh}`, async () => {
        await assertParity(model, mesh, ["--sequence-parallel", "on"]);
      });
    }
  }

  it("mixtral under tp=2", async () => {
    await assertParity("mixtral", "tp=2", ["--sequence-parallel", "on"]);
  });
});
