// Collectives on plain arrays: one for each device; the devices exchange them.
// Run with: npx tsx examples/collectives.ts
import { Mesh } from "../lib/index.ts";

await using mesh = await Mesh.open({ axes: { dp: 2, tp: 2 } });
const show = (name: string, arrays: readonly Float32Array[]) => {
  console.log(name.padEnd(24), arrays.map((a) => `[${a.join(" ")}]`).join("  "));
};

// Device r brings r, 10 + r, 20 + r, 30 + r. Ranks 0 and 1 are a tp group, so are 2 and 3.
const arrays = Array.from({ length: mesh.devices }, (_, r) => Float32Array.of(r, 10 + r, 20 + r, 30 + r));
show("each device brings", arrays);

const tp = mesh.group("tp");
show("allReduce over tp", await tp.allReduce(arrays));
show("max over tp", await tp.allReduce(arrays, "max"));
show("reduceScatter over tp", await tp.reduceScatter(arrays));
show("allToAll over tp", await tp.allToAll(arrays));
show("broadcast over tp", await tp.broadcast(arrays, 1));

const first = arrays.map((array, r) => array.slice(0, r % 2 === 0 ? 1 : 2)); // lengths may differ
show("allGather over tp", await tp.allGather(first));
show("allReduce over all", await mesh.group("dp", "tp").allReduce(arrays));
