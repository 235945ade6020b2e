// Seeded mistakes in what decides where data lies and what is exchanged: sharding, sequences, experts, checkpoints.
import type { Mutant } from "./mutant.ts";

const sharding: readonly Mutant[] = [
  {
    name: "products over a dim that tp splits are not summed",
    class: "missing reduction",
    file: "lib/passes/shard.ts",
    find: "if (kind) for (const axis of axes) partial[axisName(axis)] = kind;",
    replace: 'if (kind) for (const axis of axes) if (axisName(axis) !== "tp") partial[axisName(axis)] = kind;',
  },
  {
    name: "gradients are not summed over dp",
    class: "missing reduction",
    file: "lib/passes/shard.ts",
    find: "const axes = Object.keys(partial).filter((a) => partial[a] === kind);",
    replace: 'const axes = Object.keys(partial).filter((a) => partial[a] === kind && a !== "dp");',
  },
  {
    name: "a scattered sum of gradients keeps the rank's own part only",
    class: "missing reduction",
    file: "lib/passes/shard.ts",
    find: `v = this.#step(v, \`scatter \${specText(scattered)}\`, "reduce_scatter", { ...part, kind }, scattered);`,
    replace: `v = this.#step(v, \`scatter \${specText(scattered)}\`, "shard_slice", part, scattered);`,
  },
  {
    name: "ranks of the batch divide by their own tokens",
    class: "wrong mean factor",
    file: "lib/compile/step.ts",
    find: "spec: first.values[value]!.spec!,",
    replace: "spec: { ...first.values[value]!.spec!, partial: {} },",
  },
  {
    name: "a term's weight is left out of its gradient",
    class: "wrong mean factor",
    file: "lib/train/trace.ts",
    find: "builder.div(t.weight || 1, ",
    replace: "builder.div(1, ",
  },
  {
    name: "targets that do not count are counted",
    class: "padding counted",
    file: "lib/nn/language-model.ts",
    find: "targets.ne(IGNORED_TARGET)",
    replace: "targets.ne(-1)",
  },
  {
    name: "targets that do not count have a loss where the vocabulary is split",
    class: "padding counted",
    file: "lib/ops/loss.ts",
    find: "return [b.select(counts, b.sub(lse, parts[1]!), 0), lse];",
    replace: "return [b.sub(lse, parts[1]!), lse];",
  },
  {
    name: "a slice begins where the whole dim's part would",
    class: "wrong offset of a slice",
    file: "lib/compile/device-table.ts",
    find: "return entry.outer ? start - shardInterval(entry.size, entry.outer, layout.sizes, place).start : start;",
    replace: "return start;",
  },
  {
    name: "uneven parts begin as if all were as short as the last",
    class: "wrong offset of a slice",
    file: "lib/ir/spec.ts",
    find: "for (let r = 0; r < rank; r++) start += base + ((r - turn + parts) % parts < extra ? 1 : 0);",
    replace: "for (let r = 0; r < rank; r++) start += base;",
  },
  {
    name: "who holds the sample left over does not turn with the microbatch, but where parts begin does",
    class: "lost sample",
    file: "lib/ir/spec.ts",
    find: "return { start, stop: start + base + ((rank - turn + parts) % parts < extra ? 1 : 0) };",
    replace: "return { start, stop: start + base + (rank < extra ? 1 : 0) };",
  },
  {
    name: "gradients of a vocabulary's part go to the rows of the first",
    class: "wrong offset of a slice",
    file: "lib/ops/embedding.ts",
    find: "const start = startWord(ctx.params.vocab, ctx.outputSpecs[0]!.dims[0]!);",
    replace: "const start = startWord(ctx.params.vocab, []);",
  },
  {
    name: "dropout goes by a sample's place in its microbatch, not in the batch",
    class: "other random numbers",
    file: "lib/nn/layers.ts",
    find: "input(x.context, stepInput.samples, x.shape.slice(0, 1)).sym,",
    replace: 'builder.one("iota", [], { dim: 0, shape: x.shape.slice(0, 1) }),',
  },
  {
    name: "the gradient of a value that is read several times is that of its last use",
    class: "gradient lost",
    file: "lib/tensor/grad.ts",
    find: "list.reduceRight((a, c) => this.b.add(a, c))",
    replace: "list.at(-1)!",
  },
];

const sequences: readonly Mutant[] = [
  {
    name: "the last block of keys is left out",
    class: "ring blocks off by one",
    file: "lib/ops/ring-attention.ts",
    find: "for (let shifts = 0; shifts < ring.ranks; shifts++) {",
    replace: "for (let shifts = 0; shifts < ring.ranks - 1; shifts++) {",
  },
  {
    name: "keys are masked by the positions of the next block",
    class: "ring blocks off by one",
    file: "lib/ops/ring-attention.ts",
    find: "shifted(this.#axis, i % 2 === 0 ? 0 : shifts)",
    replace: "shifted(this.#axis, i % 2 === 0 ? 0 : (shifts + 1) % this.ranks)",
  },
  {
    name: "queries keep the gradient of the last block only",
    class: "gradient lost",
    file: "lib/ops/ring-attention.ts",
    find: "dq = add(dq, b.cast(forQ, wide));",
    replace: "dq = b.cast(forQ, wide);",
  },
  {
    name: "sequences are laid out rank after rank while positions say zig-zag",
    class: "zig-zag order",
    file: "lib/compile/sequence.ts",
    find: "const source = (row * length + positions[i]!) * inner;",
    replace: "const source = (row * length + i) * inner;",
  },
  {
    name: "a rank's part is all from the front",
    class: "zig-zag order",
    file: "lib/compile/sequence.ts",
    find: "const head = Math.ceil(count / 2);",
    replace: "const head = count;",
  },
  {
    name: "the way back to the true order is the way there",
    class: "zig-zag order",
    file: "lib/compile/sequence.ts",
    find: "places[position] = place;",
    replace: "places[place] = position;",
  },
  {
    name: "dropout under cp goes by a token's place, not its position",
    class: "other random numbers",
    file: "lib/passes/sequence.ts",
    find: `{ id: this.#map[node.inputs[given + 1]!]! } : this.#leaf("positions");`,
    replace: "{ id: this.#map[node.inputs[given + 1]!]! } : this.#iota(this.#sequences.length);",
  },
  {
    name: "a ring's parts are sent with the sizes of the peer's",
    class: "swapped all-to-all count",
    file: "lib/compile/device-table.ts",
    find: `entry.side === "send" ? [own, (own + 1) % ranks] : [before, before];`,
    replace: `entry.side === "send" ? [before, (own + 1) % ranks] : [own, before];`,
  },
  {
    name: "parts are expected from the next rank of the ring",
    class: "wrong peer",
    file: "lib/compile/device-table.ts",
    find: `entry.side === "send" ? [own, (own + 1) % ranks] : [before, before];`,
    replace: `entry.side === "send" ? [own, (own + 1) % ranks] : [before, (own + 1) % ranks];`,
  },
];

const exchanged: readonly Mutant[] = [
  {
    name: "allToAll() exchanges what a rank sends with what it gets",
    class: "swapped all-to-all count",
    file: "lib/compile/collective.ts",
    find: "return [group, 0, 0, counts!, joinCounts!];",
    replace: "return [group, 0, 0, joinCounts!, counts!];",
  },
  {
    name: "choices that experts drop are not counted",
    class: "experts",
    file: "lib/nn/experts.ts",
    find: 'kept.lt(0).cast("f32").sum()',
    replace: 'kept.lt(-1).cast("f32").sum()',
  },
  {
    name: "every rank takes the first experts' counts for its own",
    class: "experts",
    file: "lib/ops/routing.ts",
    find: `const start = { table: { kind: "start", size: all.dims[1]!, axes: ctx.params.axes } } as const;`,
    replace: `const start = { table: { kind: "literal", value: 0 } } as const;`,
  },
  {
    name: "a rank has room for one choice of each token",
    class: "experts",
    file: "lib/ops/routing.ts",
    find: "const choices = Math.min(k, held);",
    replace: "const choices = Math.min(1, held);",
  },
  {
    name: "rows go back by the counts of the way there",
    class: "swapped all-to-all count",
    file: "lib/ops/routing.ts",
    find: "[group, owners, Number(back), most]",
    replace: "[group, owners, 0, most]",
  },
  {
    name: "a checkpoint's block is read from the tensor's start",
    class: "checkpoint slice",
    file: "lib/checkpoint/grid.ts",
    find: "common.start.reduce((sum, s, d) => sum + (s - block.start[d]!) * strides[d]!, 0)",
    replace: "common.start.reduce((sum, s, d) => sum + s * strides[d]!, 0)",
  },
  {
    name: "a checkpoint's block of rows is as long as the wider one's",
    class: "checkpoint slice",
    file: "lib/checkpoint/grid.ts",
    find: "if (common.shape[inner] !== from.shape[inner] || common.shape[inner] !== to.shape[inner]) break;",
    replace: "if (common.shape[inner] !== from.shape[inner]) break;",
  },
];

/** All of this file. */
export const compilerMutants: readonly Mutant[] = [...sharding, ...sequences, ...exchanged];
