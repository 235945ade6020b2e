// A training must not hold up the JavaScript of the process that it runs in: servers and progress bars go on beside it.
import assert from "node:assert/strict";
import { timerDuringTraining } from "../../bench/timer.ts";

describe("the event loop while training", function () {
  this.timeout(120_000);

  it("comes round at least every 250 ms once the first step is done (bench/timer.ts measures it finely)", async () => {
    const flags = "--layers 2 --width 64 --batch-size 8 --seq-len 64 --eval-every 15 --validation-fraction 0.002";
    const phases = await timerDuringTraining(40, flags.split(" "));
    const train = phases.find(({ phase }) => phase === "train");
    assert.ok(train && train.firings > 0);
    assert.ok(train.longest < 250, `a task of ${train.longest} ms`);
  });
});
