// The errors meshwork throws: each kind is a class with a stable `code`, in the user's terms.

/** Facts about an error that a program may read: names, sizes, file positions. Plain data only. */
export type ErrorDetails = Readonly<Record<string, unknown>>;

/** What an error may carry besides its message. */
export interface ErrorOptionsWithDetails extends ErrorOptions {
  readonly details?: ErrorDetails;
}

/** Every error meshwork throws on purpose. `code` never changes between releases; messages may. */
export class MeshworkError extends Error {
  /** Stable identifier of the kind, e.g. `ERR_SHAPE`. */
  readonly code: string;
  /** Facts behind the message; empty when there are none. */
  readonly details: ErrorDetails;

  constructor(code: string, message: string, options: ErrorOptionsWithDetails = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = new.target.name;
    this.code = code;
    this.details = options.details ?? {};
  }
}

/** Shapes that do not fit an op, a parameter or each other. */
export class ShapeError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_SHAPE", message, options);
  }
}

/** A dtype that an op does not take, or two that differ where there is no implicit promotion. */
export class DTypeError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_DTYPE", message, options);
  }
}

/** A PartitionSpec that does not fit its tensor or mesh, or a sharding no rule can make. */
export class ShardingError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_SHARDING", message, options);
  }
}

/** A mesh that cannot be made: unknown or repeated axes, sizes that do not fit the devices, tensors of two meshes. */
export class MeshError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_MESH", message, options);
  }
}

/** A step refused before anything runs: it would not fit, has an idle device, or asks for what is not supported. */
export class PlanError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_PLAN", message, options);
  }
}

/** A tensor whose value is gone: disposed, donated, or a parameter's version that has been overwritten. */
export class StaleTensorError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_STALE_TENSOR", message, options);
  }
}

/** A device or the native addon that is missing, failed, or ran out of memory. */
export class DeviceError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_DEVICE", message, options);
  }
}

/** Ranks that did not all arrive at a collective in time; `details` names the op and the ranks that are missing. */
export class CollectiveTimeoutError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_COLLECTIVE_TIMEOUT", message, options);
  }
}

/** Weights or a checkpoint that are malformed, incomplete, or do not fit the model; `details` has file and tensor. */
export class CheckpointError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_CHECKPOINT", message, options);
  }
}

/** Training data or a tokenizer that cannot be used: missing, empty, too short, ids beyond the vocabulary. */
export class DataError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_DATA", message, options);
  }
}

/** A model's config.json, or another settings file, that is malformed or asks for what is not supported. */
export class ConfigError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_CONFIG", message, options);
  }
}

/** A command line that is wrong: unknown verb or flag, ill-typed value. The command exits with 2. */
export class UsageError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_USAGE", message, options);
  }
}

/** A loss or gradient that is not finite where the caller asked to stop on it; `details` has step and module. */
export class NonFiniteError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_NON_FINITE", message, options);
  }
}

/** A loss far above what came before, where the caller asked to stop on it; `details` has step, loss and module. */
export class SpikeError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_SPIKE", message, options);
  }
}

/** A compiled program the native runtime refuses: a bound, a kernel or an operand is wrong. A bug in the compiler. */
export class ProgramError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_PROGRAM", message, options);
  }
}

/** Work ended early on request: an AbortSignal, an interrupt, or a mesh closed while it ran. */
export class AbortedError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_ABORTED", message, options);
  }
}

/**
 * A file or folder that cannot be read or written: permission, disk full, not a folder; `details` has path and errno.
 */
export class FileError extends MeshworkError {
  constructor(message: string, options?: ErrorOptionsWithDetails) {
    super("ERR_FILE", message, options);
  }
}

/** An error as plain data that can be sent between threads, which Error objects cannot without losing their class. */
export interface ErrorData {
  readonly name: string;
  readonly message: string;
  readonly stack: string | undefined;
  readonly details: ErrorDetails;
  readonly cause?: unknown;
}

const errorClasses: ReadonlyMap<string, new (message: string, options?: ErrorOptionsWithDetails) => MeshworkError> =
  new Map(
    [
      ShapeError,
      DTypeError,
      ShardingError,
      MeshError,
      PlanError,
      StaleTensorError,
      DeviceError,
      CollectiveTimeoutError,
      CheckpointError,
      DataError,
      ConfigError,
      UsageError,
      NonFiniteError,
      SpikeError,
      ProgramError,
      AbortedError,
      FileError,
    ].map((errorClass) => [errorClass.name, errorClass]),
  );

/** An error as data. Causes that are meshwork errors become data too; others are kept. */
export function errorToData(error: MeshworkError): ErrorData {
  const { name, message, stack, details, cause } = error;
  const sent = cause instanceof MeshworkError ? errorToData(cause) : cause;
  return { name, message, stack, details, ...(cause === undefined ? {} : { cause: sent }) };
}

/** The error that was sent, of the same class. */
export function errorFromData({ name, message, stack, details, cause }: ErrorData): MeshworkError {
  const made = errorClasses.get(name) ?? ProgramError;
  const error = new made(message, {
    details,
    ...(cause === undefined ? {} : { cause: isErrorData(cause) ? errorFromData(cause) : cause }),
  });
  if (stack !== undefined) error.stack = stack;
  return error;
}

function isErrorData(value: unknown): value is ErrorData {
  return typeof value === "object" && value !== null && "name" in value && errorClasses.has(String(value.name));
}

/** True for errors of the operating system, whose `code` is an errno name such as `ENOENT`. */
export function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && "code" in error && typeof error.code === "string";
}

/** The operating system's reason in words, for messages: `permission denied`, `no such file or folder`, ... */
export function systemReason(error: unknown): string {
  if (!isSystemError(error)) return error instanceof Error ? error.message : String(error);
  return SYSTEM_REASONS.get(error.code ?? "") ?? error.message;
}

const SYSTEM_REASONS: ReadonlyMap<string, string> = new Map([
  ["ENOENT", "no such file or folder"],
  ["EACCES", "permission denied"],
  ["EPERM", "operation not permitted"],
  ["EROFS", "read-only file system"],
  ["ENOSPC", "no space left on the disk"],
  ["ENOTDIR", "not a folder"],
  ["EISDIR", "is a folder"],
  ["EEXIST", "exists already"],
  ["EMFILE", "too many open files"],
  ["EDQUOT", "the disk quota is used up"],
  ["EFBIG", "the file is larger than is allowed"],
  ["EIO", "the disk reported an error"],
  ["ELOOP", "too many symbolic links"],
  ["ENAMETOOLONG", "the name is too long"],
]);
