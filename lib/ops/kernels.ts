// The native kernels that op records lower to, in the order of their codes. `npm run tables` writes
// native/core/opcodes.h from this list.
import { attentionGradKernel, attentionKernel, ropeKernel } from "./attention.ts";
import {
  allGatherKernel,
  allReduceKernel,
  allToAllKernel,
  broadcastKernel,
  reduceScatterKernel,
  shardSliceKernel,
} from "./collective.ts";
import { matmulKernel } from "./contraction.ts";
import { embeddingGradKernel, embeddingKernel } from "./embedding.ts";
import {
  expertCombineGradKernel,
  expertCombineKernel,
  expertGateGradKernel,
  expertGateKernel,
  groupedMatmulGradKernel,
  groupedMatmulKernel,
} from "./experts.ts";
import { elementwiseKernel } from "./expression.ts";
import { randomKernel } from "./leaf.ts";
import { crossEntropyGradKernel, crossEntropyKernel, crossEntropyPartialKernel } from "./loss.ts";
import { copyKernel } from "./movement.ts";
import { layerNormGradKernel, layerNormKernel, rmsNormGradKernel, rmsNormKernel } from "./normalization.ts";
import { adamwKernel, sgdKernel, squareSumKernel } from "./optimizer.ts";
import { reduceKernel, softmaxGradKernel, softmaxKernel } from "./reduction.ts";
import {
  expertCapacityKernel,
  expertExchangeKernel,
  expertSortKernel,
  permuteRowsKernel,
  topkKernel,
} from "./routing.ts";

export { type ElementOp, elementOps } from "./expression.ts";

export const kernels = [
  elementwiseKernel,
  reduceKernel,
  copyKernel,
  matmulKernel,
  softmaxKernel,
  softmaxGradKernel,
  layerNormKernel,
  layerNormGradKernel,
  rmsNormKernel,
  rmsNormGradKernel,
  embeddingKernel,
  embeddingGradKernel,
  crossEntropyKernel,
  crossEntropyPartialKernel,
  crossEntropyGradKernel,
  ropeKernel,
  attentionKernel,
  attentionGradKernel,
  randomKernel,
  squareSumKernel,
  adamwKernel,
  sgdKernel,
  allReduceKernel,
  allGatherKernel,
  reduceScatterKernel,
  allToAllKernel,
  broadcastKernel,
  shardSliceKernel,
  topkKernel,
  expertCapacityKernel,
  expertSortKernel,
  permuteRowsKernel,
  expertExchangeKernel,
  groupedMatmulKernel,
  groupedMatmulGradKernel,
  expertGateKernel,
  expertGateGradKernel,
  expertCombineKernel,
  expertCombineGradKernel,
] as const;

/** Name of a native kernel. */
export type KernelName = (typeof kernels)[number]["name"];
