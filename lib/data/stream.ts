// A long sequence of token ids in segments, one a file, read at any position.
import { expectList, expectObject } from "../core/check.ts";
import { DataError } from "../core/errors.ts";
import type { TokenIds } from "./tokenizer.ts";

/** The tokens of one file. */
export interface TokenSegment {
  /** The file, for messages. */
  readonly source: string;
  readonly ids: TokenIds;
}

/** All tokens of the data in order. */
export class TokenStream {
  readonly segments: readonly TokenSegment[];
  /** Number of tokens. */
  readonly length: number;
  readonly #starts: readonly number[];

  constructor(segments: readonly TokenSegment[]) {
    expectList("a stream's segments", segments);
    for (const segment of segments) expectObject("a stream's segment", segment);
    this.segments = segments.filter((segment) => segment.ids.length > 0);
    let length = 0;
    this.#starts = this.segments.map((segment) => {
      const start = length;
      length += segment.ids.length;
      return start;
    });
    this.length = length;
  }

  /** Copies tokens [start, start + count) into `out` from `offset` on. @throws {RangeError} beyond the stream. */
  read(start: number, count: number, out: Int32Array, offset = 0): void {
    if (!(start >= 0 && count >= 0 && start + count <= this.length)) {
      throw new RangeError(`tokens [${start}, ${start + count}) of a stream of ${this.length}`);
    }
    let index = this.#find(start);
    for (let done = 0; done < count; index++) {
      const from = start + done - this.#starts[index]!;
      const piece = this.segments[index]!.ids.subarray(from, from + count - done);
      out.set(piece, offset + done);
      done += piece.length;
    }
  }

  /**
   * Makes sure that every id is below `vocabSize`.
   * @throws {DataError} naming the first that is not, its file, and its position among the file's tokens from 0.
   */
  checkVocabulary(vocabSize: number): void {
    for (const { source, ids } of this.segments) {
      if (vocabSize >= 2 ** (8 * ids.BYTES_PER_ELEMENT)) continue;
      const position = ids.findIndex((id) => id >= vocabSize);
      if (position < 0) continue;
      const id = ids[position]!;
      throw new DataError(
        `${source}: token ${position} (counted from 0) is ${id}, beyond the model's vocabulary of ${vocabSize} tokens`,
        { details: { file: source, position, id, vocabSize } },
      );
    }
  }

  /** The segment that holds a position. */
  #find(position: number): number {
    let [low, high] = [0, this.#starts.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.#starts[middle]! <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
