// Copies between any two layouts of the same dims, and of the part of a tensor that is this device's shard: whole
// ranges by 16 bytes, else element by element in y's order.
#include <algorithm>

#include "backend/checks/copy.h"
#include "backend/cuda/kernel_list.h"
#include "backend/cuda/launch.h"
#include "backend/nest.h"

namespace meshwork::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void copyRange(T* y, const T* x, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) y[i] = x[i];
}

// The loops over y's elements; nest.strides[0] are y's, [1] x's.
template <class T>
__global__ void copyStrided(T* y, const T* x, Nest<2> nest, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    int64_t left = i, to = 0, from = 0;
    for (int d = nest.rank - 1; d >= 0; --d) {
      const int64_t outer = left / nest.dims[d], at = left - outer * nest.dims[d];
      to += at * nest.strides[0][d];
      from += at * nest.strides[1][d];
      left = outer;
    }
    y[to] = x[from];
  }
}

template <class T>
void copyElements(Device& device, const Nest<2>& nest, std::byte* y, const std::byte* x) {
  const int64_t count = nest.count(nest.rank);
  launch(device, blocksFor(device, count, kThreads), kThreads, 0, copyStrided<T>, reinterpret_cast<T*>(y),
         reinterpret_cast<const T*>(x), nest, count);
}

template <class T>
void copyBytes(Device& device, std::byte* y, const std::byte* x, int64_t bytes) {
  const int64_t count = bytes / static_cast<int64_t>(sizeof(T));
  launch(device, blocksFor(device, count, kThreads), kThreads, 0, copyRange<T>, reinterpret_cast<T*>(y),
         reinterpret_cast<const T*>(x), count);
}

bool aligned(const std::byte* at, size_t to) { return reinterpret_cast<uintptr_t>(at) % to == 0; }

// Copies into y as many elements from x's memory, beginning at `from`, in x's layout.
void copyFrom(const Call& call, const std::byte* from) {
  const View &x = *call.in[0].view, &y = *call.out[0].view;
  Device& device = deviceOf(call);
  const int64_t count = y.count(), size = dtypeSize(y.dtype);
  if (count == 0) return;
  std::byte* to = call.out[0].data;
  Nest<2> nest;
  for (int d = 0; d < y.rank; ++d) nest.add(y.dims[d], {y.strides[d], x.strides[d]});
  nest.join();
  if (nest.rank == 0 || (nest.rank == 1 && nest.strides[0][0] == 1 && nest.strides[1][0] == 1)) {
    const int64_t bytes = count * size;
    if (bytes % 16 == 0 && aligned(to, 16) && aligned(from, 16)) return copyBytes<uint4>(device, to, from, bytes);
    if (bytes % 4 == 0 && aligned(to, 4) && aligned(from, 4)) return copyBytes<uint32_t>(device, to, from, bytes);
    return copyBytes<uint8_t>(device, to, from, bytes);
  }
  switch (size) {
    case 1:
      return copyElements<uint8_t>(device, nest, to, from);
    case 2:
      return copyElements<uint16_t>(device, nest, to, from);
    case 4:
      return copyElements<uint32_t>(device, nest, to, from);
    default:
      return copyElements<uint64_t>(device, nest, to, from);
  }
}

void runCopy(const Call& call) { copyFrom(call, call.in[0].data); }

void runShardSlice(const Call& call) {
  const Operand &x = call.in[0], &y = call.out[0];
  const int dim = call.attrs[attr::shard_slice::dim];
  // The table is data: a start that does not fit is moved to where it does.
  const int64_t start = std::clamp<int64_t>(call.tableAttr(attr::shard_slice::start), 0, x.dim(dim) - y.dim(dim));
  copyFrom(call, x.data + start * x.stride(dim) * dtypeSize(x.view->dtype));
}

}  // namespace
}  // namespace meshwork::cuda

MESHWORK_CUDA_KERNELS(copy, {Op::copy, checkCopy, runCopy}, {Op::shard_slice, checkShardSlice, runShardSlice})
