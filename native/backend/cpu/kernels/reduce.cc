// Sums, maxima and minima over any dims of any layout. Sums are in float64; of 16-bit floats four neighbours are added
// in float32 first. The order of the sum depends on dims and strides only: reduced dims in the order they lie in
// memory, sixteen lanes along rows.
#include "backend/checks/reduce.h"

#include <algorithm>

#include "backend/cpu/kernels/lanes.h"
#include "backend/nest.h"
#include "runtime/pool.h"

namespace meshwork::MESHWORK_ISA {
namespace {

constexpr int64_t kUnit = 16384;          // elements of a row summed at a time where a sum is split
constexpr int64_t kMaxParts = 64;         // a sum is split into, with few outputs
constexpr int64_t kPartialValues = 4096;  // parts x outputs
constexpr int64_t kRowsPerPart = 64;
constexpr int64_t kColumnTile = 1024;
// Partial sums of columns lie in the first thread's workspace.
constexpr int64_t kColumnValues = static_cast<int64_t>(Pool::kWorkspaceBytes / sizeof(double));

// The loops over what is kept (0: x, 1: y) and over what is reduced (x).
struct Shape {
  Nest<2> kept;
  Nest<1> reduced;
};

template <class A>
struct Sum : SumOf {
  static constexpr A identity = 0;
};
template <class A>
struct Max : MaxOf {
  static constexpr A identity = static_cast<A>(-__builtin_inf());
};
template <>
struct Max<int32_t> : MaxOf {
  static constexpr int32_t identity = INT32_MIN;
};
template <class A>
struct Min : MinOf {
  static constexpr A identity = static_cast<A>(__builtin_inf());
};
template <>
struct Min<int32_t> : MinOf {
  static constexpr int32_t identity = INT32_MAX;
};

// T: storage of x; A: running type; Out: storage of y; Op: one of the above.
template <class T, class A, class Out, class Op>
class Reducer {
 public:
  Reducer(const Call& call, const Shape& shape)
      : shape_(shape), pool_(*call.pool), x_(call.in[0].as<T>()), y_(call.out[0].as<Out>()) {}

  void run() {
    const Nest<2>& kept = shape_.kept;
    const Nest<1>& reduced = shape_.reduced;
    const int64_t inner = reduced.rank ? reduced.strides[0][reduced.rank - 1] : 1;
    const bool columns = kept.rank > 0 && kept.strides[0][kept.rank - 1] == 1 && inner > 1;
    if (columns) {
      reduceColumns();
    } else {
      reduceRows();
    }
  }

 private:
  // What elements are combined in before they are combined as A.
  using C = std::conditional_t<kIsShort<T>, float, A>;
  struct Whole : Accumulator<A, Op> {
    Whole() : Accumulator<A, Op>(Op::identity) {}
  };
  using Running = std::conditional_t<std::is_same_v<A, C>, Whole, RowSum<float>>;

  static void write(Out* y, A value) { *y = narrowOne<Out>(static_cast<Compute<Out>>(value)); }

  // ---- one output at a time: x is read along the innermost reduced loop ----

  // Units [begin, end) of the reduced elements at x: unit = row * pieces + piece.
  A reduceUnits(const T* x, int64_t begin, int64_t end, int64_t length, int64_t pieces) const {
    const Nest<1>& reduced = shape_.reduced;
    const int outer = std::max(reduced.rank - 1, 0);
    const int64_t stride = reduced.rank ? reduced.strides[0][outer] : 1;
    Running sum;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / pieces, at = (unit % pieces) * kUnit;
      const T* from = x + reduced.offset(0, row, outer) + at * stride;
      const int64_t n = pieces == 1 ? length : std::min(kUnit, length - at);
      if (stride == 1) {
        sum.addVectors(n, [from](int64_t i, int m) { return loadSomeAs<C>(from + i, m); });
      } else {
        sum.addVectors(n, [=](int64_t i, int m) { return loadStrided<C>(from + i * stride, stride, m); });
      }
    }
    return sum.total();
  }

  void reduceRows() {
    const Nest<2>& kept = shape_.kept;
    const Nest<1>& reduced = shape_.reduced;
    const int outer = std::max(reduced.rank - 1, 0);
    const int64_t length = reduced.rank ? reduced.dims[outer] : 1;
    const int64_t rows = reduced.count(outer), outputs = kept.count(kept.rank);
    const int64_t pieces = std::max<int64_t>(1, (length + kUnit - 1) / kUnit), units = rows * pieces;
    const int64_t each = rows * length;  // elements per output
    if (outputs <= kMaxParts && each >= 4 * kUnit && units > 1) {
      return reduceParts(outputs, std::min({units, kMaxParts, kPartialValues / outputs, each / kUnit}), units, length,
                         pieces);
    }
    const int64_t perTask = std::max<int64_t>(1, kUnit / std::max<int64_t>(1, each));
    pool_.run((outputs + perTask - 1) / perTask, [&](int64_t task, int) {
      const int64_t end = std::min(outputs, (task + 1) * perTask);
      for (int64_t i = task * perTask; i < end; ++i) {
        const A value = reduceUnits(x_ + kept.offset(0, i, kept.rank), 0, units, length, pieces);
        write(y_ + kept.offset(1, i, kept.rank), value);
      }
    });
  }

  // Few outputs: every sum is cut into a fixed number of parts, whose results are combined in order.
  void reduceParts(int64_t outputs, int64_t parts, int64_t units, int64_t length, int64_t pieces) {
    const Nest<2>& kept = shape_.kept;
    A partial[kPartialValues];
    pool_.run(outputs * parts, [&](int64_t task, int) {
      const int64_t part = task % parts;
      const T* x = x_ + kept.offset(0, task / parts, kept.rank);
      partial[task] = reduceUnits(x, units * part / parts, units * (part + 1) / parts, length, pieces);
    });
    for (int64_t i = 0; i < outputs; ++i) {
      A value = partial[i * parts];
      for (int64_t part = 1; part < parts; ++part) value = Op()(value, partial[i * parts + part]);
      write(y_ + kept.offset(1, i, kept.rank), value);
    }
  }

  // ---- many neighbouring outputs at a time: x is read along the innermost kept loop ----

  // sums[j] = Op over reduced elements [begin, end) of x[j], four rows at a time.
  void sumColumns(A* sums, const T* x, int64_t width, int64_t begin, int64_t end) const {
    for (int64_t j = 0; j < width; ++j) sums[j] = Op::identity;
    const Nest<1>& reduced = shape_.reduced;
    const int outer = reduced.rank - 1;
    const int64_t length = reduced.dims[outer], stride = reduced.strides[0][outer];
    for (int64_t i = begin; i < end;) {
      const int64_t column = i % length;
      const T* from = x + reduced.offset(0, i / length, outer) + column * stride;
      const int64_t run = std::min(end - i, length - column);
      int64_t r = 0;
      for (; r + 4 <= run; r += 4) addRows<4>(sums, from + r * stride, stride, width);
      for (; r < run; ++r) addRows<1>(sums, from + r * stride, stride, width);
      i += run;
    }
  }

  template <int kRows>
  static void addRows(A* sums, const T* x, int64_t stride, int64_t width) {
    forVectors<C>(width, [&](int64_t j, int n) {
      const auto row = [&](int r) { return loadSomeAs<C>(x + r * stride + j, n); };
      Vec<C> value = row(0);
      if constexpr (kRows == 4) value = Op()(Op()(value, row(1)), Op()(row(2), row(3)));
      if constexpr (std::is_same_v<A, C>) {
        storeSome(sums + j, Op()(loadSome(sums + j, n), value), n);
      } else {
        constexpr int lanes = kLanes<A>;
        for (int k = 0; k * lanes < n; ++k) {
          A* at = sums + j + k * lanes;
          const int m = std::min(n - k * lanes, lanes);
          storeSome(at, Op()(loadSome(at, m), partOf(value, k)), m);
        }
      }
    });
  }

  void reduceColumns() {
    const Nest<2>& kept = shape_.kept;
    const int outer = kept.rank - 1;
    const int64_t width = kept.dims[outer], yStep = kept.strides[1][outer];
    const int64_t groups = kept.count(outer), count = shape_.reduced.count(shape_.reduced.rank);
    const int64_t parts = std::min({kColumnValues / (groups * width), count / kRowsPerPart, kMaxParts / 2});
    if (parts > 1 && groups < kMaxParts) return reduceColumnParts(parts, count);
    const int64_t tile = groups * width >= 8192 ? 512 : 64;
    const int64_t tiles = (width + tile - 1) / tile;
    pool_.run(groups * tiles, [&](int64_t task, int) {
      A sums[512];
      const int64_t group = task / tiles, begin = (task % tiles) * tile, n = std::min(tile, width - begin);
      sumColumns(sums, x_ + kept.offset(0, group, outer) + begin, n, 0, count);
      Out* y = y_ + kept.offset(1, group, outer) + begin * yStep;
      for (int64_t j = 0; j < n; ++j) write(y + j * yStep, sums[j]);
    });
  }

  void reduceColumnParts(int64_t parts, int64_t count) {
    const Nest<2>& kept = shape_.kept;
    const int outer = kept.rank - 1;
    const int64_t width = kept.dims[outer], groups = kept.count(outer), yStep = kept.strides[1][outer];
    A* partial = reinterpret_cast<A*>(pool_.workspace(0));
    pool_.run(groups * parts, [&](int64_t task, int) {
      const int64_t part = task % parts;
      const T* x = x_ + kept.offset(0, task / parts, outer);
      for (int64_t j = 0; j < width; j += kColumnTile) {
        sumColumns(partial + task * width + j, x + j, std::min(kColumnTile, width - j), count * part / parts,
                   count * (part + 1) / parts);
      }
    });
    for (int64_t group = 0; group < groups; ++group) {
      A* sums = partial + group * parts * width;
      Out* y = y_ + kept.offset(1, group, outer);
      for (int64_t part = 1; part < parts; ++part) {
        for (int64_t j = 0; j < width; ++j) sums[j] = Op()(sums[j], sums[part * width + j]);
      }
      for (int64_t j = 0; j < width; ++j) write(y + j * yStep, sums[j]);
    }
  }

  const Shape& shape_;
  Pool& pool_;
  const T* x_;
  Out* y_;
};

template <class T, class SumType, class Out>
void reduceKind(const Call& call, const Shape& shape) {
  using C = Compute<T>;
  switch (call.attrs[attr::reduce::kind]) {
    case 0:
      return Reducer<T, SumType, Out, Sum<SumType>>(call, shape).run();
    case 1:
      return Reducer<T, C, Out, Max<C>>(call, shape).run();
    default:
      return Reducer<T, C, Out, Min<C>>(call, shape).run();
  }
}

void reduceInt(const Call& call, const Shape& shape) {
  // Unsigned, so that sums wrap around.
  if (call.attrs[attr::reduce::kind] == 0) {
    return Reducer<uint32_t, uint32_t, uint32_t, Sum<uint32_t>>(call, shape).run();
  }
  reduceKind<int32_t, int32_t, int32_t>(call, shape);
}

void runReduce(const Call& call) {
  const View &x = *call.in[0].view, &y = *call.out[0].view;
  if (y.count() == 0) return;
  Shape shape;
  for (int d = 0; d < x.rank; ++d) {
    if (y.dims[d] == x.dims[d]) {
      shape.kept.add(x.dims[d], {x.strides[d], y.strides[d]});
    } else {
      shape.reduced.add(x.dims[d], {x.strides[d]});
    }
  }
  shape.kept.join();
  shape.reduced.join();
  switch (x.dtype) {
    case DType::f64:
      return reduceKind<double, double, double>(call, shape);
    case DType::i32:
      return reduceInt(call, shape);
    case DType::bf16:
      return y.dtype == DType::bf16 ? reduceKind<bf16, double, bf16>(call, shape)
                                    : reduceKind<bf16, double, float>(call, shape);
    case DType::f16:
      return y.dtype == DType::f16 ? reduceKind<f16, double, f16>(call, shape)
                                   : reduceKind<f16, double, float>(call, shape);
    default:
      return reduceKind<float, double, float>(call, shape);
  }
}

}  // namespace
}  // namespace meshwork::MESHWORK_ISA

MESHWORK_KERNELS(reduce, {Op::reduce, checkReduce, runReduce})
