// A seeded permutation of [0, n) computed entry by entry, with nothing stored: any position can be asked for at once.

const ROUNDS = 6;

/**
 * The image of `index` under a permutation of [0, n) that `seed` and `epoch` pick. A Feistel network over the next even
 * number of bits, walked until it lands inside; the same on every machine.
 * @param n size of the set, 1 to 2^32
 */
export function permute(index: number, n: number, seed: number, epoch: number): number {
  if (!(Number.isInteger(n) && n >= 1 && n <= 2 ** 32)) throw new RangeError(`permutation of ${n} entries`);
  if (!(Number.isInteger(index) && index >= 0 && index < n)) throw new RangeError(`entry ${index} of ${n}`);
  const half = Math.max(1, Math.ceil(Math.log2(n) / 2));
  const key = keyOf(seed, epoch);
  let at = index;
  // Each walk step stays within the domain's cycle, so that it ends inside, after less than four steps on average.
  do at = feistel(at, half, key);
  while (at >= n);
  return at;
}

function feistel(value: number, half: number, key: number): number {
  const size = 2 ** half;
  let left = Math.floor(value / size);
  let right = value % size;
  for (let round = 0; round < ROUNDS; round++) {
    const mixed = mix(right ^ mix(key + Math.imul(round, 0x9e3779b9)));
    [left, right] = [right, (left ^ (mixed % size)) >>> 0];
  }
  return left * size + right;
}

function keyOf(seed: number, epoch: number): number {
  const words = [seed, Math.floor(seed / 2 ** 32), epoch, Math.floor(epoch / 2 ** 32)];
  return words.reduce((key, word) => mix(Math.imul(key, 31) + (word >>> 0)), 0x6d657368);
}

/** The finalizer of MurmurHash3: a bijection of 32-bit words in which each input bit changes half of the output's. */
function mix(value: number): number {
  let h = value >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
