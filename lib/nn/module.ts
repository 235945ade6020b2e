// Module: a part of a model, with parameters and parts of its own. Its path is where stages, errors and files find it.
import { expectFunction } from "../core/check.ts";
import { describe } from "../core/describe.ts";
import { ConfigError } from "../core/errors.ts";
import { Parameter } from "../tensor/parameter.ts";
import { Tensor } from "../tensor/tensor.ts";

/**
 * A part of a model. Subclasses keep Parameters and Modules (or arrays of them) in properties, whose names make up
 * paths ("h.0.attn"), and define forward(); others run it by call(). Private `#` properties are not seen.
 */
export abstract class Module {
  /** Path from the model's root, "" for the root itself; set by nameModules(). */
  path = "";
  /** Whether layers that differ in training (dropout) act as in training; set by train() and eval(). */
  training = true;

  /** The computation. Run it by call(), which labels what it makes with this module's path. */
  abstract forward(...args: never[]): unknown;

  /** Runs forward(); operations made meanwhile, outside deeper modules, belong to this module. */
  call<Args extends unknown[], Result>(this: Module & { forward(...args: Args): Result }, ...args: Args): Result {
    const tensor = firstTensor(args);
    return tensor === undefined ? this.forward(...args) : this.within(tensor, () => this.forward(...args));
  }

  /** Runs a function; operations made meanwhile in the tensor's context belong to this module. */
  within<Result>(tensor: Tensor, run: () => Result): Result {
    if (!(tensor instanceof Tensor)) throw new ConfigError(`within() needs a tensor, not ${describe(tensor)}`);
    expectFunction("what runs within a module", run);
    const { builder } = tensor.context;
    const outer = builder.path;
    builder.path = this.path;
    try {
      return run();
    } finally {
      builder.path = outer;
    }
  }

  /** All parameters in the order of their definition, tied ones once. */
  parameters(): Parameter[] {
    const found = new Set<Parameter>();
    walk(this, "", { parameter: (parameter) => found.add(parameter) });
    return [...found];
  }

  /** This module and all within it with their paths, in the order of their definition, each once. */
  namedModules(): [path: string, module: Module][] {
    const found: [string, Module][] = [];
    walk(this, "", { module: (module, path) => found.push([path, module]) });
    return found;
  }

  /** Switches this module and all within it to training, or with false to evaluation. */
  train(on = true): this {
    for (const [, module] of this.namedModules()) module.training = on;
    return this;
  }
  /** Switches this module and all within it to evaluation: no dropout. */
  eval(): this {
    return this.train(false);
  }
}

/** Gives modules and parameters their paths below a root; what is reachable in two ways has the first. */
export function nameModules<M extends Module>(root: M): M {
  const named = new Set<Parameter>();
  walk(root, "", {
    module: (module, path) => {
      module.path = path;
    },
    parameter: (parameter, path) => {
      if (!named.has(parameter)) parameter.path = path;
      named.add(parameter);
    },
  });
  return root;
}

/** Who is told of what a walk meets: each module once, a parameter at each place. */
interface Visitor {
  module?(module: Module, path: string): void;
  parameter?(parameter: Parameter, path: string): void;
}

function walk(value: unknown, path: string, visitor: Visitor, seen = new Set<Module>()): void {
  if (value instanceof Parameter) visitor.parameter?.(value, path);
  if (Array.isArray(value)) value.forEach((item, i) => void walk(item, join(path, String(i)), visitor, seen));
  if (!(value instanceof Module) || seen.has(value)) return;
  seen.add(value);
  visitor.module?.(value, path);
  for (const [name, child] of Object.entries(value)) walk(child, join(path, name), visitor, seen);
}

function join(path: string, name: string): string {
  return path === "" ? name : `${path}.${name}`;
}

/** The first tensor among arguments, also one in an array or record of them. */
function firstTensor(args: readonly unknown[]): Tensor | undefined {
  for (const arg of args) {
    if (arg instanceof Tensor) return arg;
    if (typeof arg !== "object" || arg === null) continue;
    const inner = Object.values(arg).find((item) => item instanceof Tensor);
    if (inner !== undefined) return inner;
  }
  return undefined;
}
