// The errors' contract: class, name, code, details, cause.
import assert from "node:assert/strict";
import * as errors from "../../lib/core/errors.ts";

type Constructor = new (message: string, options?: errors.ErrorOptionsWithDetails) => errors.MeshworkError;

const kinds: readonly (readonly [Constructor, string])[] = [
  [errors.ShapeError, "ERR_SHAPE"],
  [errors.DTypeError, "ERR_DTYPE"],
  [errors.ShardingError, "ERR_SHARDING"],
  [errors.MeshError, "ERR_MESH"],
  [errors.PlanError, "ERR_PLAN"],
  [errors.StaleTensorError, "ERR_STALE_TENSOR"],
  [errors.DeviceError, "ERR_DEVICE"],
  [errors.CollectiveTimeoutError, "ERR_COLLECTIVE_TIMEOUT"],
  [errors.CheckpointError, "ERR_CHECKPOINT"],
  [errors.DataError, "ERR_DATA"],
  [errors.ConfigError, "ERR_CONFIG"],
  [errors.UsageError, "ERR_USAGE"],
  [errors.NonFiniteError, "ERR_NON_FINITE"],
  [errors.ProgramError, "ERR_PROGRAM"],
  [errors.AbortedError, "ERR_ABORTED"],
  [errors.FileError, "ERR_FILE"],
];

describe("errors", () => {
  for (const [Kind, code] of kinds) {
    it(`${Kind.name} has the stable code ${code}`, () => {
      const cause = new Error("below");
      const error = new Kind("what is wrong", { details: { dim: 1 }, cause });
      assert.ok(error instanceof errors.MeshworkError && error instanceof Error);
      assert.deepEqual([error.name, error.code, error.message], [Kind.name, code, "what is wrong"]);
      assert.deepEqual(error.details, { dim: 1 });
      assert.equal(error.cause, cause);
      assert.deepEqual(new Kind("bare").details, {});
    });
  }

  it("explains the operating system's errors in words", () => {
    const missing = Object.assign(new Error("ENOENT: no such file"), { code: "ENOENT" });
    assert.equal(errors.systemReason(missing), "no such file or folder");
    assert.equal(errors.systemReason(new Error("plain")), "plain");
    assert.equal(errors.systemReason("text"), "text");
    assert.equal(errors.isSystemError(missing), true);
    assert.equal(errors.isSystemError(new Error("plain")), false);
  });
});
