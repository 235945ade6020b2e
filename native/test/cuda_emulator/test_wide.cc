// Operands that can be taken 16 bytes at a time, and rows that take a warp or a whole block: against the CPU's kernels.
#include "test/cuda_emulator/alike.h"

namespace meshwork::test {
namespace {

constexpr DType kTypes[] = {DType::f32, DType::f64, DType::bf16};
constexpr int64_t kWidths[] = {64, 320, 4096};
constexpr int64_t kRows = 11;

DType statistics(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

TEST(wide_softmax) {
  for (const DType dtype : kTypes) {
    for (const int64_t n : kWidths) {
      Tensor x(dtype, {kRows, n}), y(dtype, {kRows, n}, {n + 16, 1}), dy(dtype, {kRows, n}), dx(dtype, {kRows, n});
      x.random(-9, 9, 1);
      dy.random(-1, 1, 2);
      checkAlike({Op::softmax, {&x}, {&y}}, 4);
      checkAlike({Op::softmax_grad, {&y, &dy}, {&dx}}, 4);
      const auto bits = x.bytes();
      Instruct(Op::softmax, {&x}, {&x}).run();  // in place
      for (int64_t i = 0; i < x.count(); ++i) CHECK_NEAR(x.get(i), y.get(i), 2 * epsilonOf(dtype) * y.get(i) + 1e-6);
      x.setBytes(bits);
    }
  }
}

TEST(wide_cross_entropy) {
  for (const DType dtype : kTypes) {
    for (const int64_t n : kWidths) {
      const DType s = statistics(dtype);
      Tensor x(dtype, {kRows, n}, {n + 8, 1}), targets(DType::i32, {kRows}), nll(s, {kRows}), lse(s, {kRows}),
          max(s, {kRows}), dnll(s, {kRows}), dx(dtype, {kRows, n});
      x.random(-9, 9, 1);
      targets.fill([&](int64_t i) { return static_cast<double>(i * 37 % (n + 2) - 1); });
      max.fill([](int64_t) { return 9; });
      dnll.random(-1, 1, 3);
      checkAlike({Op::cross_entropy, {&x, &targets}, {&nll, &lse}, {-1}}, 100);
      checkAlike({Op::cross_entropy_grad, {&x, &targets, &lse, &dnll}, {&dx}, {-1, 0}, {}, {0}}, 40);
      checkAlike({Op::cross_entropy_partial, {&x, &targets, &max}, {&nll, &lse}, {-1, 0}, {}, {2}}, 4000);
    }
  }
}

TEST(wide_norms) {
  for (const DType dtype : kTypes) {
    for (const DType weights : {dtype, statistics(dtype)}) {
      for (const int64_t n : kWidths) {
        const DType s = statistics(dtype);
        Tensor x(dtype, {200, n}), dy(dtype, {200, n}), w(weights, {n}), b(weights, {n}), y(dtype, {200, n}),
            mean(s, {200}), rstd(s, {200}), dw(s, {n}), db(s, {n});
        x.random(-2, 5, 1);
        dy.random(-1, 1, 2);
        w.random(0.5, 2, 3);
        b.random(-1, 1, 4);
        checkAlike({Op::layer_norm, {&x, &w, &b}, {&y, &mean, &rstd}, {0}, {1e-5}}, 40);
        checkAlike({Op::layer_norm_grad, {&dy, &x, &w, &mean, &rstd}, {&y, &dw, &db}}, 60);
        checkAlike({Op::rms_norm, {&x, &w}, {&y, &rstd}, {0}, {1e-5}}, 40);
        checkAlike({Op::rms_norm_grad, {&dy, &x, &w, &rstd}, {&y, &dw}}, 60);
      }
    }
  }
}

TEST(wide_embedding_and_rope) {
  for (const DType dtype : kTypes) {
    for (const int64_t n : kWidths) {
      Tensor table(dtype, {50, n}), ids(DType::i32, {90}), y(dtype, {90, n}), sums(statistics(dtype), {50, n});
      table.random(-1, 1, 1);
      ids.fill([](int64_t i) { return static_cast<double>(i * 7 % 60 - 4); });
      checkAlike({Op::embedding, {&table, &ids}, {&y}, {0}, {}, {0}});
      checkAlike({Op::embedding_grad, {&y, &ids}, {&sums}, {0}, {}, {0}});
    }
    Tensor x(dtype, {2, 9, 3, 64}), z(dtype, {2, 9, 3, 64}), positions(DType::i32, {2, 9}, {0, 1}),
        frequencies(DType::f32, {32});
    x.random(-2, 2, 1);
    positions.fill([](int64_t i) { return static_cast<double>(i * 3); });
    frequencies.fill([](int64_t i) { return std::pow(10000.0, -static_cast<double>(i) / 32); });
    for (const int32_t inverse : {0, 1}) checkAlike({Op::rope, {&x, &positions, &frequencies}, {&z}, {inverse}}, 20);
  }
}

TEST(wide_reductions_and_copies) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::i32}) {
    const DType to = dtype == DType::bf16 ? DType::f32 : dtype;
    Tensor x(dtype, {6, 130, 256});
    x.random(-50, 50, 1);
    for (const Dims& kept : {Dims{6, 130, 1}, Dims{6, 1, 256}, Dims{1, 1, 256}, Dims{1, 130, 1}, Dims{1, 1, 1}}) {
      Tensor y(to, kept);
      // Sums of up to 200 thousand float64 differ by what the order of so many additions leaves.
      const double sum = dtype == DType::f64 ? 2e5 : dtype == DType::i32 ? 0 : 1;
      for (const int32_t kind : {0, 1, 2}) checkAlike({Op::reduce, {&x}, {&y}, {kind}}, kind == 0 ? sum : 0);
    }
    Tensor padded(dtype, {6, 130, 256}, {130 * 272, 272, 1}), turned(dtype, {6, 130, 256}, {130 * 256, 1, 130}),
        outer(dtype, {6, 130, 256}, {256, 6 * 256, 1});
    checkAlike({Op::copy, {&x}, {&padded}});
    checkAlike({Op::copy, {&x}, {&turned}});
    checkAlike({Op::copy, {&turned}, {&x}});
    checkAlike({Op::copy, {&x}, {&outer}});
  }
}

// Sides whose runs begin at 16 bytes, in every layout, over the ends of tiles.
TEST(wide_matmul) {
  const int64_t m = 136, n = 144, k = 72;
  const DType dtype = DType::bf16;
  Tensor d(dtype, {2, m, n}), bias(dtype, {n}), residual(dtype, {2, m, n});
  bias.random(-1, 1, 3);
  residual.random(-1, 1, 4);
  for (const bool byRows : {true, false}) {
    Tensor a(dtype, {2, m, k}, byRows ? Dims{m * k, k, 1} : Dims{m * k, 1, m});
    a.random(-1, 1, 1);
    for (const bool right : {true, false}) {
      Tensor b(dtype, {2, k, n}, right ? Dims{n * k, n, 1} : Dims{n * k, 1, k});
      b.random(-1, 1, 2);
      checkAlike({Op::matmul, {&a, &b, &bias, &residual}, {&d}, {2 + 4 + 16, 0}, {0.5}}, 200);
    }
  }
}

// Heads whose rows begin at 16 bytes, for asynchronous copies: masks of every kind, grouped heads, a tile's ends.
TEST(wide_attention) {
  for (const int64_t d : {64, 128}) {
    for (const int32_t flags : {0, 1, 7}) {
      const int64_t e = d - 24, t = 81, s = 150;
      const DType dtype = DType::bf16;
      Tensor q(dtype, {2, t, 4, d}), k(dtype, {2, s, 2, d}), v(dtype, {2, s, 2, e}), out(dtype, {2, t, 4, e}),
          lse(DType::f32, {2, 4, t}), dout(dtype, {2, t, 4, e}), dq(dtype, {2, t, 4, d}), dk(dtype, {2, s, 2, d}),
          dv(dtype, {2, s, 2, e}), places(DType::i32, {2, t}), placesK(DType::i32, {2, s}),
          segments(DType::i32, {2, t}), segmentsK(DType::i32, {2, s});
      q.random(-1, 1, 1);
      k.random(-1, 1, 2);
      v.random(-1, 1, 3);
      dout.random(-1, 1, 4);
      places.fill([&](int64_t i) { return static_cast<double>(i % t + 40); });
      placesK.fill([&](int64_t i) { return static_cast<double>(i % s); });
      segments.fill([&](int64_t i) { return static_cast<double>(i % t / 40); });
      segmentsK.fill([&](int64_t i) { return static_cast<double>(i % s / 70); });
      std::vector<Tensor*> forward = {&q, &k, &v}, backward = {&q, &k, &v, &out, &lse, &dout};
      for (Tensor* indices : {&places, &placesK, &segments, &segmentsK}) {
        if (flags != 7) break;
        forward.push_back(indices);
        backward.push_back(indices);
      }
      checkAlike({Op::attention, forward, {&out, &lse}, {flags, 0}, {0.125}}, 2e4);
      checkAlike({Op::attention_grad, backward, {&dq, &dk, &dv}, {flags, 0}, {0.125}}, 1e5);
    }
  }
}

}  // namespace
}  // namespace meshwork::test
