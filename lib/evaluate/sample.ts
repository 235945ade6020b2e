// Choosing a token from logits: greedy, temperature, top-k, top-p (Holtzman et al. 2020).

/** How a token is chosen. */
export interface SamplingOptions {
  /** Divides the logits; 0 takes the likeliest token. Default 1. */
  readonly temperature?: number;
  /** Choose among so many likeliest tokens. */
  readonly topK?: number;
  /** Choose among the likeliest tokens that together have this probability. */
  readonly topP?: number;
  readonly seed?: number;
}

/** A number in [0, 1) that depends on the seed and the position only. */
function uniform(seed: number, position: number): number {
  // SplitMix64's finaliser on a mix of both (Steele et al. 2014).
  let z = BigInt.asUintN(64, BigInt(Math.trunc(seed)) * 0x9e3779b97f4a7c15n + BigInt(position + 1) * 0xd1b54a32d192ed03n);
  z = BigInt.asUintN(64, (z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n);
  z = BigInt.asUintN(64, (z ^ (z >> 27n)) * 0x94d049bb133111ebn);
  z ^= z >> 31n;
  return Number(z >> 11n) / 2 ** 53;
}

/** Chooses a token; `position` numbers the choices of one generation. Equal logits: the lowest id first. */
export function sampleToken(logits: ArrayLike<number>, options: SamplingOptions, position: number): number {
  const { temperature = 1, topK, topP = 1, seed = 0 } = options;
  if (temperature === 0 || topK === 1) return argmax(logits);
  const order = Array.from({ length: logits.length }, (_, i) => i).sort((a, b) => logits[b]! - logits[a]! || a - b);
  const kept = order.slice(0, topK ?? order.length);
  const top = logits[kept[0]!]!;
  const weights = kept.map((i) => Math.exp((logits[i]! - top) / temperature));
  const total = weights.reduce((a, b) => a + b, 0);
  let nucleus = kept.length;
  if (topP < 1) {
    let mass = 0;
    nucleus = weights.findIndex((w) => (mass += w) >= topP * total) + 1 || kept.length;
  }
  const within = weights.slice(0, nucleus).reduce((a, b) => a + b, 0);
  let rest = uniform(seed, position) * within;
  for (let i = 0; i < nucleus; i++) {
    rest -= weights[i]!;
    if (rest < 0) return kept[i]!;
  }
  return kept[nucleus - 1]!;
}

function argmax(logits: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}
