// What the tests of collectives share: views, ranks on threads of their own, and calls.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "collective/collective.h"
#include "runtime/pool.h"
#include "test/harness.h"

namespace meshwork::test {

inline View viewOf(DType dtype, std::vector<int64_t> dims) {
  View view;
  view.dtype = dtype;
  view.rank = static_cast<int32_t>(dims.size());
  int64_t stride = 1;
  for (int d = view.rank - 1; d >= 0; --d) {
    view.dims[d] = dims[static_cast<size_t>(d)];
    view.strides[d] = stride;
    stride *= view.dims[d];
  }
  return view;
}

inline std::vector<int32_t> upTo(int n) {
  std::vector<int32_t> ranks;
  for (int r = 0; r < n; ++r) ranks.push_back(r);
  return ranks;
}

inline std::unique_ptr<Communicator> open(int ranks, int64_t timeoutMs = 20000) {
  CommunicatorOptions options;
  options.ranks = ranks;
  options.timeoutMs = timeoutMs;
  return openInProcess(options);
}

// body(rank, pool) on a thread for each rank; their statuses.
inline std::vector<Status> onRanks(int ranks, const std::function<Status(int, Pool&)>& body) {
  std::vector<Status> statuses(static_cast<size_t>(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      Pool pool(1 + r % 2, 0, false);
      statuses[static_cast<size_t>(r)] = body(r, pool);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

inline void allOk(const std::vector<Status>& statuses) {
  for (const Status& status : statuses) {
    if (!status.ok()) fail(__FILE__, __LINE__, status.message());
  }
}

inline Collective call(Op op, const void* in, void* out, const View& x, const View& y) {
  Collective c;
  c.op = op;
  c.label = "test";
  c.in = static_cast<const std::byte*>(in);
  c.out = static_cast<std::byte*>(out);
  c.x = &x;
  c.y = &y;
  return c;
}

}  // namespace meshwork::test
