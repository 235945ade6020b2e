// What every way of computing a matrix product shares: its operands by block, and what becomes of the sums.
#pragma once
#include "backend/checks/matmul.h"
#include "backend/cpu/gemm.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {

inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t roundUp(int64_t a, int64_t b) { return ceilDiv(a, b) * b; }

// What happens to the sums of a row before they are the result.
template <class S>
struct Finish {
  S alpha;
  int32_t flags;
};

// d = act(alpha * sums + bias) + residual (+ d) for `count` elements of a vector; kWhole: all lanes; kPlain: d = sums.
template <bool kWhole, bool kPlain, class S, class D, class R>
MESHWORK_INLINE void finishVector(const S* sums, const S* bias, const R* residual, D* d, int count,
                                  const Finish<S>& how) {
  auto get = [count](const auto* from) {
    if constexpr (kWhole) {
      return loadAs<S>(from);
    } else {
      return loadPartialAs<S>(from, count);
    }
  };
  Vec<S> value = load(sums);
  if constexpr (!kPlain) {
    value *= how.alpha;
    if (how.flags & matmul_flag::bias) value += load(bias);
    if (how.flags & matmul_flag::gelu) value = gelu(value);
    if (how.flags & matmul_flag::silu) value = silu(value);
    if (how.flags & matmul_flag::residual) value += get(residual);
    if (how.flags & matmul_flag::accumulate) value += get(d);
  }
  if constexpr (kWhole) {
    storeResult(d, value);
  } else {
    storeResult(d, value, count);
  }
}

// A tile of sums: rows `ld` apart, readable up to whole vectors, as is the bias. The result's and the residual's rows
// are `ldTo` and `ldResidual` apart.
template <class S>
struct FinishTile {
  int64_t rows, columns;
  const S* sums;
  int64_t ld;
  const S* bias;
  const void* residual;
  int64_t ldResidual;
  void* to;
  int64_t ldTo;
};

template <bool kPlain, class S, class D, class R>
MESHWORK_INLINE void finishRows(const FinishTile<S>& tile, const Finish<S>& how) {
  constexpr int lanes = kLanes<S>;
  for (int64_t i = 0; i < tile.rows; ++i) {
    const S* sums = tile.sums + i * tile.ld;
    const R* more = static_cast<const R*>(tile.residual) + i * tile.ldResidual;
    D* to = static_cast<D*>(tile.to) + i * tile.ldTo;
    int64_t j = 0;
    for (; j + lanes <= tile.columns; j += lanes) {
      finishVector<true, kPlain>(sums + j, tile.bias + j, more + j, to + j, lanes, how);
    }
    if (j < tile.columns) {
      finishVector<false, kPlain>(sums + j, tile.bias + j, more + j, to + j, static_cast<int>(tile.columns - j), how);
    }
  }
}

template <class S, class D, class R>
void finishTile(const FinishTile<S>& tile, const Finish<S>& how) {
  if (how.flags == 0 && how.alpha == S{1}) {
    finishRows<true, S, D, R>(tile, how);
  } else {
    finishRows<false, S, D, R>(tile, how);
  }
}

// Sums in float64 of a product whose result is not: rounded as that result is, so that what follows gives the same bits
// here as in a kernel of its own.
template <class D, class R>
void finishRounded(const FinishTile<double>& tile, const Finish<double>& how) {
  constexpr int64_t kChunk = 256;
  const bool biased = how.flags & matmul_flag::bias;
  float sums[kChunk] = {}, bias[kChunk] = {};
  for (int64_t j = 0; j < tile.columns; j += kChunk) {
    const int64_t columns = std::min(kChunk, tile.columns - j);
    for (int64_t c = 0; biased && c < columns; ++c) bias[c] = static_cast<float>(tile.bias[j + c]);
    for (int64_t i = 0; i < tile.rows; ++i) {
      const double* row = tile.sums + i * tile.ld + j;
      for (int64_t c = 0; c < columns; ++c) sums[c] = static_cast<float>(row[c] * how.alpha);
      const R* residual = static_cast<const R*>(tile.residual) + i * tile.ldResidual + j;
      D* to = static_cast<D*>(tile.to) + i * tile.ldTo + j;
      finishRows<false, float, D, R>({1, columns, sums, 0, bias, residual, 0, to, 0}, {1.0f, how.flags});
    }
  }
}

template <class S>
using FinishFunction = void (*)(const FinishTile<S>&, const Finish<S>&);

template <class S, class D, class R>
constexpr FinishFunction<S> finishFunction() {
  if constexpr (std::is_same_v<S, double> && !std::is_same_v<D, double>) {
    return finishRounded<D, R>;
  } else {
    return finishTile<S, D, R>;
  }
}

template <class T, class S>
FinishFunction<S> chooseFinish(bool shortResult, bool shortResidual) {
  using Wide = Compute<T>;
  if constexpr (!kIsShort<T>) {
    return finishFunction<S, T, T>();
  } else {
    if (shortResult) return shortResidual ? finishFunction<S, T, T>() : finishFunction<S, T, Wide>();
    return shortResidual ? finishFunction<S, Wide, T>() : finishFunction<S, Wide, Wide>();
  }
}

// A block of the result, and the scratch memory of the thread that computes it.
struct Block {
  int64_t batch, row, rows, column, columns;
  std::byte* workspace;
};

// The operands of one call. T is the storage type of a and b, S the type of the sums and of all else before the result
// is rounded.
template <class T, class S>
class MatmulCall {
 public:
  explicit MatmulCall(const Call& call) : call_(call) {
    const Operand &a = call.in[0], &b = call.in[1];
    m_ = a.dim(1), n_ = b.dim(2), k_ = a.dim(2);
    leftByRows_ = a.stride(2) == 1 || k_ <= 1;
    rightByRows_ = b.stride(2) == 1 || n_ <= 1;
    leftStride_ = a.stride(leftByRows_ ? 1 : 2);
    rightStride_ = b.stride(rightByRows_ ? 1 : 2);
    const int32_t flags = call.attrs[attr::matmul::flags];
    how_ = {static_cast<S>(call.floatAttr(attr::matmul::alpha)), flags};
    residual_ = flags & matmul_flag::residual ? &call.in[call.inputs - 1] : nullptr;
    const auto isShort = [](const Operand& x) { return dtypeSize(x.view->dtype) == 2; };
    const bool shortResult = isShort(call.out[0]);
    finish_ = chooseFinish<T, S>(shortResult, residual_ && isShort(*residual_));
    // In float64, sums of float32 are no results yet.
    plain_ = flags == 0 && how_.alpha == S{1} && !shortResult && std::is_same_v<S, Compute<T>>;
  }

 protected:
  // Halves blocks until every thread has a few, down to `leastRows` by `leastColumns`; rows and columns of a block stay
  // multiples of a tile's. Sums run over all of k in any block: the bits stay.
  void splitForThreads(int64_t leastRows, int64_t tileRows, int64_t leastColumns, int64_t tileColumns) {
    const int threads = call_.pool->threads();
    if (threads == 1) return;
    const int64_t batch = call_.in[0].dim(0);
    while (batch * ceilDiv(m_, blockRows_) * ceilDiv(n_, blockColumns_) < 3 * threads) {
      if (blockColumns_ > leastColumns && (blockColumns_ >= blockRows_ || blockRows_ <= leastRows)) {
        blockColumns_ = roundUp(blockColumns_ / 2, tileColumns);
      } else if (blockRows_ > leastRows) {
        blockRows_ = roundUp(blockRows_ / 2, tileRows);
      } else {
        break;
      }
    }
  }

  // Calls body(block) for every block of blockRows_ by blockColumns_.
  template <class Body>
  void forBlocks(const Body& body) const {
    const int64_t rowBlocks = ceilDiv(m_, blockRows_), columnBlocks = ceilDiv(n_, blockColumns_);
    call_.pool->run(call_.in[0].dim(0) * rowBlocks * columnBlocks, [&](int64_t index, int thread) {
      Block block;
      block.column = index % columnBlocks * blockColumns_;
      block.row = index / columnBlocks % rowBlocks * blockRows_;
      block.batch = index / columnBlocks / rowBlocks;
      block.columns = std::min(blockColumns_, n_ - block.column);
      block.rows = std::min(blockRows_, m_ - block.row);
      block.workspace = call_.pool->workspace(thread);
      body(block);
    });
  }

  bool empty() const { return call_.in[0].dim(0) == 0 || m_ == 0 || n_ == 0; }

  const T* left(const Block& at, int64_t row, int64_t k) const {
    const Operand& a = call_.in[0];
    return a.as<T>() + at.batch * a.stride(0) + (leftByRows_ ? row * leftStride_ + k : k * leftStride_ + row);
  }
  const T* right(const Block& at, int64_t k, int64_t column) const {
    const Operand& b = call_.in[1];
    return b.as<T>() + at.batch * b.stride(0) + (rightByRows_ ? k * rightStride_ + column : column * rightStride_ + k);
  }
  static std::byte* element(const Operand& x, int64_t batch, int64_t row, int64_t column) {
    const int64_t at = batch * x.stride(0) + row * x.stride(1) + column;
    return x.data + at * dtypeSize(x.view->dtype);
  }

  // The bias of columns [column, column + n), as S.
  void fillBias(int64_t column, int64_t n, S* to) const {
    if (!(how_.flags & matmul_flag::bias)) return;
    const Operand& bias = call_.in[2];
    const int64_t stride = bias.stride(0);
    for (int64_t j = 0; j < n; ++j) {
      if constexpr (kIsShort<T>) {
        if (dtypeSize(bias.view->dtype) == 2) {
          to[j] = widen(bias.as<T>()[(column + j) * stride]);
          continue;
        }
      }
      to[j] = bias.as<Compute<T>>()[(column + j) * stride];
    }
  }

  // Turns rows of sums (`ld` apart) into the result at (row, column).
  void finishRows(const Block& at, int64_t row, int64_t rows, int64_t column, int64_t columns, const S* sums,
                  int64_t ld, const S* bias) const {
    const Operand& d = call_.out[0];
    const void* more = residual_ ? element(*residual_, at.batch, row, column) : d.data;
    finish_({rows, columns, sums, ld, bias, more, residual_ ? residual_->stride(1) : 0,
             element(d, at.batch, row, column), d.stride(1)},
            how_);
  }

  const Call& call_;
  int64_t m_, n_, k_;
  bool leftByRows_, rightByRows_;  // unit stride in k (left), in n (right)
  int64_t leftStride_, rightStride_;
  Finish<S> how_;
  const Operand* residual_;
  FinishFunction<S> finish_;
  bool plain_;  // the sums are the result
  int64_t blockRows_ = 0, blockColumns_ = 0;
};

}  // namespace meshwork::MESHWORK_ISA
