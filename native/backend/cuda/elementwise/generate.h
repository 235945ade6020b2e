// Generates the CUDA C++ of a fused elementwise kernel from its expression.
#pragma once
#include <string>
#include <vector>

#include "backend/cuda/elementwise/layout.h"

namespace meshwork::cuda {

constexpr int kFusedThreads = 256;
constexpr const char* kFusedName = "meshworkFused";
// What a launch may pass; an expression that needs more is interpreted.
constexpr size_t kFusedParameterBytes = 4096;

// All that the source depends on, as bytes: calls with the same key share a kernel. Sizes, strides, addresses and the
// table are not in it.
std::string fusedKey(const Call& call, const ElementLayout& layout);

// The source: one kernel, kFusedName, whose only parameter is a structure of the words of fusedParameters().
std::string fusedSource(const Call& call, const ElementLayout& layout);

std::vector<int64_t> fusedParameters(const ElementLayout& layout);

}  // namespace meshwork::cuda
