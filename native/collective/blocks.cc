// Which blocks a collective moves. The arithmetic of all_to_all is move.cc's.
#include "collective/blocks.h"

#include <algorithm>

namespace meshwork {
namespace {

int64_t sumBefore(const int32_t* counts, int end) {
  int64_t sum = 0;
  for (int i = 0; i < end; ++i) sum += counts[i];
  return sum;
}

std::vector<const std::byte*> sourcesOf(std::span<const Collective> calls, int64_t offset) {
  std::vector<const std::byte*> sources;
  for (const Collective& call : calls) sources.push_back(call.in + offset);
  return sources;
}

void allReduce(DeviceQueue& queue, std::span<const Collective> calls) {
  const Collective& first = calls.front();
  const std::vector<const std::byte*> sources = sourcesOf(calls, 0);
  std::vector<std::byte*> outputs;
  for (const Collective& call : calls) outputs.push_back(call.out);
  BlockReduce reduce;
  reduce.dtype = first.x->dtype;
  reduce.kind = static_cast<int32_t>(first.reduction);
  reduce.sources = sources;
  reduce.outputs = outputs;
  reduce.count = first.x->count();
  queue.reduce(Stream::communication, reduce);
}

void reduceScatter(DeviceQueue& queue, std::span<const Collective> calls) {
  const int64_t size = dtypeSize(calls.front().x->dtype);
  for (size_t me = 0; me < calls.size(); ++me) {
    const Collective& mine = calls[me];
    const View& x = *mine.x;
    const int64_t inner = dimProduct(x, mine.dim + 1, x.rank);
    const int64_t begin = sumBefore(mine.counts, static_cast<int>(me)) * inner;
    const std::vector<const std::byte*> sources = sourcesOf(calls, begin * size);
    std::byte* const output = mine.out;
    BlockReduce reduce;
    reduce.dtype = x.dtype;
    reduce.kind = static_cast<int32_t>(mine.reduction);
    reduce.sources = sources;
    reduce.outputs = std::span(&output, 1);
    reduce.rows = dimProduct(x, 0, mine.dim);
    reduce.count = mine.counts[me] * inner;
    reduce.sourcePitch = x.dims[mine.dim] * inner;
    reduce.outputPitch = reduce.count;
    queue.reduce(Stream::communication, reduce);
  }
}

void allGather(std::span<const Collective> calls, std::vector<BlockCopy>& blocks) {
  for (const Collective& mine : calls) {
    for (size_t r = 0; r < calls.size(); ++r) {
      const int64_t begin = sumBefore(mine.counts, static_cast<int>(r));
      blocks.push_back(unpackPart(*mine.y, mine.out, mine.dim, begin, mine.counts[r], calls[r].in));
    }
  }
}

// The part that rank r sends to `me`. Seen from the lower of the two dims: outer, low, middle, high, inner.
BlockCopy exchanged(const Collective& theirs, const Collective& mine, int r, int me) {
  const View &x = *theirs.x, &y = *mine.y;
  const int split = mine.dim, join = mine.joinDim;
  const int low = std::min(split, join), high = std::max(split, join);
  const int64_t inner = dimProduct(y, high + 1, y.rank) * dtypeSize(y.dtype);
  const int64_t splitBegin = sumBefore(theirs.counts, me), joinBegin = sumBefore(mine.joinCounts, r);
  BlockCopy block;
  block.counts[0] = dimProduct(y, 0, low);
  if (split == join) {
    block.from = theirs.in + splitBegin * inner;
    block.to = mine.out + joinBegin * inner;
    block.bytes = mine.joinCounts[r] * inner;
    block.fromPitch[0] = x.dims[split] * inner;
    block.toPitch[0] = y.dims[join] * inner;
    return block;
  }
  const int64_t partLow = low == split ? y.dims[split] : x.dims[join];
  const int64_t partHigh = high == split ? y.dims[split] : x.dims[join];
  const int64_t middle = dimProduct(y, low + 1, high);
  const int64_t fromLow = low == split ? splitBegin : 0, fromHigh = high == split ? splitBegin : 0;
  const int64_t toLow = low == join ? joinBegin : 0, toHigh = high == join ? joinBegin : 0;
  block.bytes = partHigh * inner;
  block.counts[1] = partLow * middle;
  block.fromPitch[1] = x.dims[high] * inner;
  block.toPitch[1] = y.dims[high] * inner;
  block.fromPitch[0] = x.dims[low] * middle * block.fromPitch[1];
  block.toPitch[0] = y.dims[low] * middle * block.toPitch[1];
  block.from = theirs.in + fromLow * middle * block.fromPitch[1] + fromHigh * inner;
  block.to = mine.out + toLow * middle * block.toPitch[1] + toHigh * inner;
  return block;
}

// Each rank's rows from all ranks' memory.
void expertExchange(DeviceQueue& queue, std::span<const Collective> calls) {
  std::vector<RowSource> sources;
  for (const Collective& call : calls) sources.push_back(RowSource{call.in, call.x->dims[0], false});
  for (size_t me = 0; me < calls.size(); ++me) {
    const Collective& mine = calls[me];
    const RowExchange exchange = rowExchange(mine, static_cast<int>(me), mine.scratch);
    queue.planRows(Stream::communication, exchange);
    queue.takeRows(Stream::communication, exchange, sources, Rows{mine.out, mine.y->dims[0]});
  }
}

}  // namespace

RowExchange rowExchange(const Collective& call, int me, std::byte* plan) {
  RowExchange exchange;
  exchange.counts = call.rows;
  exchange.plan = plan;
  exchange.owners = std::span(call.owners, static_cast<size_t>(call.ranks));
  exchange.experts = call.experts;
  exchange.me = me;
  exchange.back = call.back;
  exchange.width = call.x->dims[1] * dtypeSize(call.x->dtype);
  return exchange;
}

int64_t dimProduct(const View& view, int begin, int end) {
  int64_t n = 1;
  for (int d = begin; d < end; ++d) n *= view.dims[d];
  return n;
}

BlockCopy packPart(const View& tensor, const std::byte* data, int dim, int64_t begin, int64_t size, std::byte* part) {
  const int64_t inner = dimProduct(tensor, dim + 1, tensor.rank) * dtypeSize(tensor.dtype);
  BlockCopy block;
  block.to = part;
  block.from = data + begin * inner;
  block.bytes = size * inner;
  block.counts[1] = dimProduct(tensor, 0, dim);
  block.toPitch[1] = block.bytes;
  block.fromPitch[1] = tensor.dims[dim] * inner;
  return block;
}

BlockCopy unpackPart(const View& tensor, std::byte* data, int dim, int64_t begin, int64_t size, const std::byte* part) {
  BlockCopy block = packPart(tensor, data, dim, begin, size, nullptr);
  block.to = data + (block.from - data);
  block.from = part;
  std::swap(block.toPitch, block.fromPitch);
  return block;
}

void queueCollective(DeviceQueue& queue, std::span<const Collective> calls) {
  const Collective& first = calls.front();
  std::vector<BlockCopy> blocks;
  switch (first.op) {
    case Op::all_reduce:
      return allReduce(queue, calls);
    case Op::reduce_scatter:
      return reduceScatter(queue, calls);
    case Op::expert_exchange:
      return expertExchange(queue, calls);
    case Op::all_gather:
      allGather(calls, blocks);
      break;
    case Op::all_to_all:
      for (size_t me = 0; me < calls.size(); ++me) {
        for (size_t r = 0; r < calls.size(); ++r) {
          blocks.push_back(exchanged(calls[r], calls[me], static_cast<int>(r), static_cast<int>(me)));
        }
      }
      break;
    default: {
      const Collective& root = calls[static_cast<size_t>(first.root)];
      for (const Collective& call : calls) {
        if (call.out == root.in) continue;
        BlockCopy& block = blocks.emplace_back();
        block.to = call.out;
        block.from = root.in;
        block.bytes = call.y->count() * dtypeSize(call.y->dtype);
      }
      break;
    }
  }
  std::erase_if(blocks, [](const BlockCopy& block) { return block.empty() || block.to == block.from; });
  if (!blocks.empty()) queue.copy(Stream::communication, blocks);
}

}  // namespace meshwork
