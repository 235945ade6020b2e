// View arithmetic against the elements that the views name.
import assert from "node:assert/strict";
import { rowMajorStrides, type Shape, sizeOf } from "../../lib/core/shape.ts";
import type { View } from "../../lib/ir/lowering.ts";
import { broadcastView, collapseView, permuteView, reshapeGroups, reshapeView, sliceView } from "../../lib/ir/view.ts";
import { indices } from "../conformance/dense.ts";

function contiguous(dims: Shape): View {
  return { buffer: 0, dtype: "f32", offset: 0, dims: [...dims], strides: rowMajorStrides(dims) };
}

/** Where a view's elements lie, in row-major order. */
function places(view: View): number[] {
  const found: number[] = [];
  for (const index of indices(view.dims))
    found.push(index.reduce((at, i, d) => at + i * view.strides[d]!, view.offset));
  return found;
}

describe("views", () => {
  it("permute, slice and repeat", () => {
    const x = contiguous([2, 3]);
    assert.deepEqual(places(permuteView(x, [1, 0])), [0, 3, 1, 4, 2, 5]);
    assert.deepEqual(places(sliceView(x, 1, 1, 3)), [1, 2, 4, 5]);
    assert.deepEqual(places(sliceView(x, 0, 1, 1)), []);
    assert.deepEqual(places(broadcastView(contiguous([1, 2]), [3, 2])), [0, 1, 0, 1, 0, 1]);
  });

  const reshapes: readonly (readonly [View, Shape, boolean])[] = [
    [contiguous([2, 3, 4]), [6, 4], true],
    [contiguous([2, 3, 4]), [4, 3, 2], true],
    [contiguous([]), [1, 1], true],
    [contiguous([0, 4]), [2, 0, 3], true],
    [permuteView(contiguous([2, 3, 4]), [1, 0, 2]), [3, 8], false],
    [permuteView(contiguous([2, 3, 4]), [1, 0, 2]), [3, 2, 2, 2], true],
    [permuteView(contiguous([2, 3, 4]), [2, 0, 1]), [4, 6], true],
    [sliceView(contiguous([4, 6]), 1, 0, 3), [12], false],
    [sliceView(contiguous([4, 6]), 1, 0, 3), [2, 2, 3, 1], true],
    [broadcastView(contiguous([1, 4]), [3, 4]), [12], false],
    [broadcastView(contiguous([1, 1]), [3, 4]), [12], true],
    [broadcastView(contiguous([1, 4]), [6, 4]), [2, 3, 4], true],
  ];
  for (const [view, shape, possible] of reshapes) {
    it(`reshape [${view.dims}] by [${view.strides}] to [${shape}]: ${possible ? "no copy" : "a copy"}`, () => {
      const reshaped = reshapeView(view, shape);
      assert.equal(reshaped !== null, possible);
      if (reshaped !== null) {
        assert.deepEqual(reshaped.dims, shape);
        assert.deepEqual(places(reshaped), places(view));
      }
    });
  }

  it("collapse groups of dims in any order, with stride 1 where there is one element", () => {
    const x = permuteView(contiguous([2, 3, 4, 5]), [2, 0, 1, 3]);
    const grouped = collapseView(x, [
      [1, 2],
      [0, 3],
    ])!;
    assert.deepEqual(
      [grouped.dims, grouped.strides],
      [
        [6, 20],
        [20, 1],
      ],
    );
    assert.equal(
      collapseView(x, [
        [0, 1],
        [2, 3],
      ]),
      null,
    );
    const single = collapseView(contiguous([3, 1]), [[1], [0], []])!;
    assert.deepEqual(
      [single.dims, single.strides],
      [
        [1, 3, 1],
        [1, 1, 1],
      ],
    );
    const empty = collapseView(permuteView(contiguous([2, 0, 3]), [2, 0, 1]), [[0, 1], [2]])!;
    assert.deepEqual([empty.dims, sizeOf(empty.dims)], [[6, 0], 0]);
  });

  it("find the smallest groups of a reshape", () => {
    assert.deepEqual(reshapeGroups([2, 3, 4], [6, 4]), [
      { from: [0, 1], to: [0] },
      { from: [2], to: [1] },
    ]);
    assert.deepEqual(reshapeGroups([1, 6], [1, 2, 1, 3]), [
      { from: [0], to: [0] },
      { from: [1], to: [1, 2, 3] },
    ]);
    assert.deepEqual(reshapeGroups([4, 1], [4]), [
      { from: [0], to: [0] },
      { from: [1], to: [] },
    ]);
  });
});
