// Datasets: which tokens each step reads, epochs without repeats, held-out samples, running out.
import assert from "node:assert/strict";
import fc from "fast-check";
import { DataError } from "../../lib/core/errors.ts";
import { type Batch, Dataset, type DatasetOptions } from "../../lib/data/dataset.ts";
import { permute } from "../../lib/data/permutation.ts";
import { TokenStream } from "../../lib/data/stream.ts";

/** A stream whose token at position i is i, cut into segments of the given lengths. */
function counting(...lengths: readonly number[]): TokenStream {
  let next = 0;
  return new TokenStream(
    lengths.map((length, index) => ({
      source: `file${index}`,
      ids: Uint32Array.from({ length }, () => next++),
    })),
  );
}

function make(options: Partial<DatasetOptions> & Pick<DatasetOptions, "tokens">): Dataset {
  return new Dataset({ seqLen: 4, batchSize: 2, order: "shuffle", seed: 0, ...options });
}

function starts(batch: Batch): number[] {
  return Array.from({ length: batch.samples }, (_, b) => {
    const rows = (values: Int32Array) => [...values.subarray(b * batch.seqLen, (b + 1) * batch.seqLen)];
    const start = batch.inputs[b * batch.seqLen]!;
    const expected = Array.from({ length: batch.seqLen }, (_, t) => start + t);
    assert.deepEqual(rows(batch.inputs), expected);
    assert.deepEqual(
      rows(batch.targets),
      expected.map((id) => id + 1),
    );
    return start;
  });
}

describe("permutation", () => {
  it("visits every entry once, for any size, seed and epoch", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 700 }), fc.maxSafeNat(), fc.nat(9), (n, seed, epoch) => {
        const images = Array.from({ length: n }, (_, i) => permute(i, n, seed, epoch));
        assert.deepEqual(
          images.toSorted((a, b) => a - b),
          Array.from({ length: n }, (_, i) => i),
        );
      }),
    );
  });

  it("differs by seed and epoch, high seed bits included, and is stable", () => {
    const of = (seed: number, epoch: number) =>
      Array.from({ length: 50 }, (_, i) => permute(i, 50, seed, epoch)).join();
    const all = [of(0, 0), of(1, 0), of(0, 1), of(2 ** 40, 0), of(2 ** 32, 0)];
    assert.equal(new Set(all).size, all.length);
    assert.deepEqual(
      Array.from({ length: 8 }, (_, i) => permute(i, 1000, 7, 3)),
      // Written down: a change would give every earlier run's seed another order.
      [489, 252, 208, 41, 576, 536, 986, 245],
    );
    assert.ok(permute(2 ** 32 - 1, 2 ** 32, 1, 1) < 2 ** 32);
  });

  it("spreads evenly: each entry lands in each eighth about equally often", () => {
    const [n, seeds] = [64, 4000];
    const counts = new Map<string, number>();
    for (let seed = 0; seed < seeds; seed++) {
      for (const i of [0, 1, 33, 63]) {
        const key = `${i} ${permute(i, n, seed, 0) >> 3}`;
        counts.set(key, (counts.get(key) ?? 0) + 1);
      }
    }
    // Five standard deviations of a binomial with p = 1/8.
    const bound = 5 * Math.sqrt((seeds * 7) / 64);
    for (const count of counts.values()) assert.ok(Math.abs(count - seeds / 8) < bound, `${count}`);
    assert.equal(counts.size, 32);
  });
});

describe("token stream", () => {
  it("reads over the borders of its segments", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(5), { minLength: 1, maxLength: 8 }), fc.nat(40), fc.nat(40), (lengths, a, b) => {
        const stream = counting(...lengths);
        const start = a % (stream.length + 1);
        const count = b % (stream.length - start + 1);
        const out = new Int32Array(count + 2).fill(-1);
        stream.read(start, count, out, 1);
        assert.deepEqual([...out], [-1, ...Array.from({ length: count }, (_, i) => start + i), -1]);
      }),
    );
    assert.throws(() => counting(3).read(1, 3, new Int32Array(3)), RangeError);
  });

  it("names the file and position of an id beyond the vocabulary", () => {
    const stream = new TokenStream([
      { source: "a.u16", ids: Uint16Array.of(1, 2, 3) },
      { source: "b.u16", ids: Uint16Array.of(4, 50, 51) },
    ]);
    stream.checkVocabulary(52);
    assert.throws(
      () => stream.checkVocabulary(50),
      (error) =>
        error instanceof DataError &&
        /b\.u16: token 1 .* is 50, .* vocabulary of 50/.test(error.message) &&
        error.details.position === 1,
    );
  });
});

describe("dataset in sequence", () => {
  it("reads sample b of step s from (s * B + b) * T on", () => {
    const dataset = make({ tokens: counting(10, 15), order: "sequential", batchSize: 3, seqLen: 4 });
    assert.equal(dataset.steps, 2);
    assert.equal(dataset.validationSamples, 0);
    assert.deepEqual(starts(dataset.batch(0)), [0, 4, 8]);
    assert.deepEqual(starts(dataset.batch(1)), [12, 16, 20]);
  });

  it("says how many steps the data allow", () => {
    const dataset = make({ tokens: counting(24), order: "sequential", batchSize: 3, seqLen: 4 });
    for (const run of [() => dataset.batch(1), () => dataset.requireSteps(2)]) {
      assert.throws(run, (error) => error instanceof DataError && /allow 1 steps .* 25 are needed/.test(error.message));
    }
    assert.throws(() => make({ tokens: counting(8), order: "sequential" }), /allow 0 steps/);
  });

  it("holds out the end when asked to", () => {
    const dataset = make({ tokens: counting(41), order: "sequential", validationFraction: 0.2 });
    assert.equal(dataset.samples, 8);
    assert.deepEqual([...dataset.validationBatches()].flatMap(starts), [32, 36]);
  });
});

describe("shuffled dataset", () => {
  const cases = fc.record({
    length: fc.integer({ min: 12, max: 400 }),
    seqLen: fc.integer({ min: 1, max: 5 }),
    batchSize: fc.integer({ min: 1, max: 7 }),
    seed: fc.maxSafeNat(),
    validationFraction: fc.constantFrom(0, 0.02, 0.3, 0.9),
  });

  it("sees each sample once an epoch and never a held-out one", () => {
    fc.assert(
      fc.property(cases, ({ length, ...options }) => {
        const dataset = make({ tokens: counting(length), ...options });
        const held = [...dataset.validationBatches()].flatMap(starts);
        const all = Math.floor((length - 1) / options.seqLen);
        assert.equal(new Set(held).size, dataset.validationSamples);
        assert.equal(dataset.samples + dataset.validationSamples, all);
        const epochs = 2;
        const steps = Math.ceil((epochs * dataset.samples) / options.batchSize);
        const seen = Array.from({ length: steps }, (_, step) => starts(dataset.batch(step))).flat();
        for (let epoch = 0; epoch < epochs; epoch++) {
          const visited = seen.slice(epoch * dataset.samples, (epoch + 1) * dataset.samples);
          assert.equal(new Set([...visited, ...held]).size, all);
        }
      }),
    );
  });

  it("depends on the position alone, not on the batch size", () => {
    const tokens = counting(200);
    const order = (batchSize: number) => {
      const dataset = make({ tokens, batchSize, seed: 5, validationFraction: 0 });
      return Array.from({ length: 12 / batchSize }, (_, step) => starts(dataset.batch(step))).flat();
    };
    assert.deepEqual(order(2), order(6));
    assert.deepEqual(order(1), order(12));
  });

  it("changes with the seed; what is held out does not", () => {
    const [a, b] = [0, 1].map((seed) => make({ tokens: counting(2001), seed }));
    assert.notDeepEqual(starts(a!.batch(0)), starts(b!.batch(0)));
    assert.deepEqual([...a!.validationBatches()].map(starts), [...b!.validationBatches()].map(starts));
  });

  it("holds out whole batches where it can, spread over the data", () => {
    const dataset = make({ tokens: counting(4001), batchSize: 8 });
    assert.equal(dataset.validationSamples, 24);
    const held = [...dataset.validationBatches()].flatMap(starts);
    assert.ok(held[0]! < 400 && held.at(-1)! > 3600);
    assert.deepEqual(
      [...dataset.validationBatches(16)].map((batch) => batch.samples),
      [16, 8],
    );
  });

  it("refuses data shorter than one sample", () => {
    assert.throws(
      () => make({ tokens: counting(4) }),
      (error) => error instanceof DataError && /4 tokens, .* need 5/.test(error.message),
    );
    assert.equal(make({ tokens: counting(5) }).samples, 1);
    assert.throws(() => make({ tokens: counting() }), DataError);
  });
});
