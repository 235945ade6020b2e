// Deterministic test data: the same name gives the same numbers everywhere.
import type { DType } from "../../lib/core/dtype.ts";
import { type Shape, sizeOf } from "../../lib/core/shape.ts";
import { type Dense, dense, roundTo } from "./dense.ts";

/** A small generator (mulberry32) seeded by a name. */
export class Draw {
  private state = 0x9e3779b9;

  constructor(name: string) {
    for (const c of name) this.state = Math.imul(this.state ^ c.codePointAt(0)!, 0x01000193) >>> 0;
  }

  /** A number in [0, 1). */
  next(): number {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let t = this.state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  /** Numbers in [low, high) that the dtype holds exactly. */
  uniform(dtype: DType, shape: Shape, low = -2, high = 2): Dense {
    const data = Array.from({ length: sizeOf(shape) }, () => roundTo(dtype, low + (high - low) * this.next()));
    return dense(dtype, shape, data);
  }

  /** Whole numbers in [low, high). */
  ints(shape: Shape, low: number, high: number): Dense {
    return dense(
      "i32",
      shape,
      Array.from({ length: sizeOf(shape) }, () => Math.floor(low + (high - low) * this.next())),
    );
  }

  bools(shape: Shape): Dense {
    return dense(
      "bool",
      shape,
      Array.from({ length: sizeOf(shape) }, () => (this.next() < 0.5 ? 0 : 1)),
    );
  }
}
