// Where the reference runs by PyTorch are: beside the checkout, or where MESHWORK_PARITY says.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Folder of the reference runs. */
export const referenceFolder =
  process.env.MESHWORK_PARITY ?? fileURLToPath(new URL("../../../shared/parity", import.meta.url));

/** Describes tests that need the reference runs. Where these are not at hand one test stands for them and says so. */
export function describeWithReference(title: string, tests: (this: Mocha.Suite) => void): void {
  if (existsSync(referenceFolder)) {
    describe(title, tests);
    return;
  }
  describe(title, () => {
    it(`runs where the reference runs are at hand (not in ${referenceFolder}; see MESHWORK_PARITY)`, () => {
      assert.equal(process.env.MESHWORK_PARITY, undefined, `MESHWORK_PARITY names no folder: ${referenceFolder}`);
    });
  });
}
