// Builds programs for tests, word by word as docs/PROGRAM.md has them.
#pragma once
#include <bit>
#include <cstdint>
#include <string>
#include <vector>

#include "core/opcodes.h"
#include "core/view.h"

namespace meshwork::test {

using Words = std::vector<int32_t>;

inline void append(Words& to, const Words& more) { to.insert(to.end(), more.begin(), more.end()); }
inline Words wide(int64_t n) {
  const auto bits = static_cast<uint64_t>(n);
  return {static_cast<int32_t>(bits & 0xffffffffu), static_cast<int32_t>(bits >> 32)};
}

struct Ref {
  int32_t region = 0;
  int32_t offset64 = 0;
  int32_t view = 0;
};

inline Words instruction(Op op, const std::vector<Ref>& in, const std::vector<Ref>& out, const Words& attrs = {},
                         int32_t label = -1) {
  Words words = {static_cast<int32_t>(op), static_cast<int32_t>(in.size()), static_cast<int32_t>(out.size()),
                 static_cast<int32_t>(attrs.size()), label};
  for (const auto* list : {&in, &out}) {
    for (const Ref& ref : *list) append(words, {ref.region, ref.offset64, ref.view});
  }
  append(words, attrs);
  return words;
}

struct ProgramSource {
  int64_t arenaBytes = 4096;
  std::vector<int64_t> buffers;
  Words views;
  int32_t viewCount = 0;
  std::vector<double> floats;
  Words table;
  std::vector<Words> groups;
  std::vector<std::string> labels;
  std::vector<Words> segments;
  Words actions;

  // Row-major unless strides are given; returns the view's index.
  int32_t view(DType dtype, const std::vector<int64_t>& dims, std::vector<int64_t> strides = {}, int64_t offset = 0) {
    if (strides.empty()) {
      strides.resize(dims.size());
      uint64_t stride = 1;  // wraps around for dims that are meant to be refused
      for (size_t d = dims.size(); d-- > 0;) {
        strides[d] = static_cast<int64_t>(stride);
        stride *= static_cast<uint64_t>(dims[d]);
      }
    }
    append(views, {static_cast<int32_t>(dtype), static_cast<int32_t>(dims.size())});
    append(views, wide(offset));
    for (const int64_t dim : dims) append(views, wide(dim));
    for (const int64_t stride : strides) append(views, wide(stride));
    return viewCount++;
  }
  int32_t segment(const std::vector<Words>& instructions) {
    Words all;
    for (const Words& words : instructions) append(all, words);
    segments.push_back(all);
    return static_cast<int32_t>(segments.size()) - 1;
  }
  void run(int32_t segment, int32_t slot64 = 0, int32_t second64 = 0, int32_t table = 0, int32_t third64 = 0) {
    append(actions, {1, segment, slot64, second64, third64, table});
  }
  // Items are [0 send | 1 receive, peer, tag, offset / 64, view].
  void transfer(const std::vector<Words>& items) {
    append(actions, {2, static_cast<int32_t>(items.size())});
    for (const Words& item : items) append(actions, item);
  }
  void wait(int32_t send) { append(actions, {3, send}); }
  void feed(int64_t staging, int32_t offset64, int64_t bytes) {
    append(actions, {4});
    append(actions, wide(staging));
    append(actions, {offset64});
    append(actions, wide(bytes));
  }
  void fetch(int32_t region, int32_t offset64, int64_t staging, int64_t bytes) {
    append(actions, {5, region, offset64});
    append(actions, wide(staging));
    append(actions, wide(bytes));
  }

  Words words() const {
    Words all = {0x4d575052, 1, static_cast<int32_t>(kOpTableHash)};
    append(all, wide(arenaBytes));
    all.push_back(static_cast<int32_t>(buffers.size()));
    for (const int64_t bytes : buffers) append(all, wide(bytes));
    all.push_back(viewCount);
    append(all, views);
    all.push_back(static_cast<int32_t>(floats.size()));
    for (const double value : floats) append(all, wide(std::bit_cast<int64_t>(value)));
    all.push_back(static_cast<int32_t>(table.size()));
    append(all, table);
    all.push_back(static_cast<int32_t>(groups.size()));
    for (const Words& group : groups) {
      all.push_back(static_cast<int32_t>(group.size()));
      append(all, group);
    }
    all.push_back(static_cast<int32_t>(labels.size()));
    for (const std::string& label : labels) {
      all.push_back(static_cast<int32_t>(label.size()));
      for (size_t i = 0; i < label.size(); i += 4) {
        uint32_t word = 0;
        for (size_t b = 0; b < 4 && i + b < label.size(); ++b)
          word |= static_cast<uint32_t>(static_cast<unsigned char>(label[i + b])) << (8 * b);
        all.push_back(static_cast<int32_t>(word));
      }
    }
    all.push_back(static_cast<int32_t>(segments.size()));
    for (const Words& segment : segments) {
      all.push_back(static_cast<int32_t>(segment.size()));
      append(all, segment);
    }
    all.push_back(static_cast<int32_t>(actions.size()));
    append(all, actions);
    return all;
  }
};

}  // namespace meshwork::test
