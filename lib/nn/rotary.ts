// Frequencies of rotary positions, with the scalings that stretch a model to longer texts.
import { iota } from "../tensor/functions.ts";
import type { Tensor, TensorContext } from "../tensor/tensor.ts";
import type { LlamaConfig, RopeScaling } from "./config.ts";

/** Radians a position turns each pair of a head's elements by, f32 [headDim / 2]; computed in float64. */
export function inverseFrequencies(context: TensorContext, config: LlamaConfig): Tensor {
  const { headDim, ropeTheta, ropeScaling } = config;
  const pair = iota(context, [headDim / 2]).cast("f64");
  return scaled(pair.mul((-2 / headDim) * Math.log(ropeTheta)).exp(), ropeScaling).cast("f32");
}

function scaled(frequencies: Tensor, scaling: RopeScaling | undefined): Tensor {
  if (scaling === undefined) return frequencies;
  const slow = frequencies.div(scaling.factor);
  if (scaling.kind === "linear") return slow;
  // Llama 3: fast pairs stay, slow ones stretch, those between are blended by how often they turn in the original
  // context.
  const { lowFreqFactor, highFreqFactor, originalMaxPositions } = scaling;
  const turns = frequencies.mul(originalMaxPositions / (2 * Math.PI));
  const blend = turns
    .sub(lowFreqFactor)
    .div(highFreqFactor - lowFreqFactor)
    .maximum(0)
    .minimum(1);
  return slow.add(blend.mul(frequencies.sub(slow)));
}
