// attention and attention_grad against plain loops: masks, grouped heads, strides, dtypes, instruction sets, thread
// counts.
#include "backend/checks/attention.h"
#include "test/kernels.h"

namespace meshwork::test {
namespace {

struct Setup {
  int64_t batch = 1, length = 1, keys = 1, groups = 1, repeats = 1, features = 1, valueFeatures = 1;
  int32_t flags = 0;
  DType type = DType::f32;
  bool headsFirst = false;    // memory order [b, h, t, d] instead of [b, t, h, d]
  int32_t firstPosition = 0;  // of the queries
};

Tensor headsTensor(const Setup& s, int64_t length, int64_t heads, int64_t features) {
  if (!s.headsFirst) return Tensor(s.type, {s.batch, length, heads, features}, features + 3);
  Tensor t(s.type, {s.batch, heads, length, features});
  return t.transpose(1, 2);
}

// The operands of both ops and their values by the definition, in double.
struct Problem {
  Setup s;
  int64_t heads;
  Tensor q, k, v, out, lse, dout, positionsQ, positionsK, segmentsQ, segmentsK, dq, dk, dv;
  double scale;
  std::vector<double> outs, lses, dqs, dks, dvs;

  explicit Problem(const Setup& setup)
      : s(setup),
        heads(s.groups * s.repeats),
        q(headsTensor(s, s.length, heads, s.features)),
        k(headsTensor(s, s.keys, s.groups, s.features)),
        v(headsTensor(s, s.keys, s.groups, s.valueFeatures)),
        out(headsTensor(s, s.length, heads, s.valueFeatures)),
        lse(s.type == DType::f64 ? DType::f64 : DType::f32, {s.batch, heads, s.length}),
        dout(headsTensor(s, s.length, heads, s.valueFeatures)),
        positionsQ(DType::i32, {s.batch, s.length}),
        positionsK(DType::i32, {s.batch, s.keys}),
        segmentsQ(DType::i32, {s.batch, s.length}),
        segmentsK(DType::i32, {s.batch, s.keys}),
        dq(headsTensor(s, s.length, heads, s.features)),
        dk(headsTensor(s, s.keys, s.groups, s.features)),
        dv(headsTensor(s, s.keys, s.groups, s.valueFeatures)),
        scale(1.7 / std::sqrt(static_cast<double>(s.features + 1))) {
    q.random(1);
    k.random(2);
    v.random(3);
    dout.random(4);
    positionsQ.fill([&](int64_t i) { return static_cast<double>(i % s.length + s.firstPosition); });
    positionsK.fill([&](int64_t i) { return static_cast<double>((i % s.keys) * 7 % s.keys); });
    segmentsQ.fill([&](int64_t i) { return static_cast<double>(i % s.length / 50); });
    segmentsK.fill([&](int64_t i) { return static_cast<double>(i % s.keys / 60); });
  }

  bool sees(int64_t b, int64_t i, int64_t j) const {
    if ((s.flags & 4) && segmentsQ.get(b * s.length + i) != segmentsK.get(b * s.keys + j)) return false;
    if (!(s.flags & 1)) return true;
    if (s.flags & 2) return positionsK.get(b * s.keys + j) <= positionsQ.get(b * s.length + i);
    return j <= i;
  }
  size_t at(int64_t b, int64_t i, int64_t length, int64_t h, int64_t count, int64_t features) const {
    return static_cast<size_t>(((b * length + i) * count + h) * features);
  }

  void define() {
    const std::vector<double> Q = values(q), K = values(k), V = values(v), dO = values(dout);
    outs.assign(static_cast<size_t>(out.count()), 0);
    lses.assign(static_cast<size_t>(lse.count()), 0);
    dqs.assign(Q.size(), 0);
    dks.assign(K.size(), 0);
    dvs.assign(V.size(), 0);
    for (int64_t b = 0; b < s.batch; ++b) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t i = 0; i < s.length; ++i) defineRow(b, h, i, Q, K, V, dO);
      }
    }
  }

  void defineRow(int64_t b, int64_t h, int64_t i, const std::vector<double>& Q, const std::vector<double>& K,
                 const std::vector<double>& V, const std::vector<double>& dO) {
    const size_t d = static_cast<size_t>(s.features), e = static_cast<size_t>(s.valueFeatures);
    const size_t qi = at(b, i, s.length, h, heads, s.features), oi = at(b, i, s.length, h, heads, s.valueFeatures);
    std::vector<double> p(static_cast<size_t>(s.keys), -INFINITY);
    double most = -INFINITY, total = 0, delta = 0;
    auto keyAt = [&](size_t j) { return at(b, static_cast<int64_t>(j), s.keys, h / s.repeats, s.groups, s.features); };
    auto valueAt = [&](size_t j) {
      return at(b, static_cast<int64_t>(j), s.keys, h / s.repeats, s.groups, s.valueFeatures);
    };
    for (size_t j = 0; j < p.size(); ++j) {
      if (!sees(b, i, static_cast<int64_t>(j))) continue;
      p[j] = 0;
      for (size_t c = 0; c < d; ++c) p[j] += Q[qi + c] * K[keyAt(j) + c];
      p[j] *= scale;
      most = std::max(most, p[j]);
    }
    for (double score : p) total += most == -INFINITY ? 0 : std::exp(score - most);
    const double norm = most == -INFINITY ? -INFINITY : most + std::log(total);
    lses[static_cast<size_t>((b * heads + h) * s.length + i)] = norm;
    if (norm == -INFINITY) return;
    for (size_t j = 0; j < p.size(); ++j) {
      p[j] = std::exp(p[j] - norm);
      for (size_t c = 0; c < e; ++c) outs[oi + c] += p[j] * V[valueAt(j) + c];
    }
    for (size_t c = 0; c < e; ++c) delta += outs[oi + c] * dO[oi + c];
    for (size_t j = 0; j < p.size(); ++j) {
      double dp = 0;
      for (size_t c = 0; c < e; ++c) {
        dp += dO[oi + c] * V[valueAt(j) + c];
        dvs[valueAt(j) + c] += p[j] * dO[oi + c];
      }
      const double ds = p[j] * (dp - delta) * scale;
      for (size_t c = 0; c < d; ++c) {
        dqs[qi + c] += ds * K[keyAt(j) + c];
        dks[keyAt(j) + c] += ds * Q[qi + c];
      }
    }
  }

  static std::vector<double> values(const Tensor& t) {
    std::vector<double> all;
    for (int64_t i = 0; i < t.count(); ++i) all.push_back(t.get(i));
    return all;
  }

  void addIndices(Tensors& to) {
    if (s.flags & 2) to.insert(to.end(), {&positionsQ, &positionsK});
    if (s.flags & 4) to.insert(to.end(), {&segmentsQ, &segmentsK});
  }
  Tensors inputs() {
    Tensors all = {&q, &k, &v};
    addIndices(all);
    return all;
  }
  Tensors gradInputs() {
    Tensors all = {&q, &k, &v, &out, &lse, &dout};
    addIndices(all);
    return all;
  }
  Attributes attributes() const { return {{s.flags, 0}, {scale}}; }
};

void compare(const char* name, const Tensor& found, const std::vector<double>& expected, double tolerance) {
  double largest = 0;
  for (double x : expected) {
    if (std::isfinite(x)) largest = std::max(largest, std::fabs(x));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    const double x = found.get(static_cast<int64_t>(i));
    if (!near(x, expected[i], tolerance * (largest + 0.1))) {
      return fail(__FILE__, __LINE__,
                  comparison((std::string(name) + " " + std::to_string(i)).c_str(), x, expected[i]));
    }
  }
}

// Small float32 problems are computed in float64.
bool inDouble(const Setup& s) {
  const int64_t scores = s.batch * s.groups * s.repeats * s.length * s.keys;
  return s.type == DType::f32 && scores * std::max(s.features, s.valueFeatures) <= 1 << 20;
}

void check(const Setup& setup) {
  Problem p(setup);
  p.define();
  const double tolerance = setup.type == DType::f64    ? 1e-12
                           : setup.type == DType::bf16 ? 2e-2
                           : inDouble(setup)           ? 3e-7  // lse and out are stored as float32
                                                       : 1e-5;
  forEachIsa([&](Isa isa) {
    const Tensors outputs = {&p.out, &p.lse}, gradients = {&p.dq, &p.dk, &p.dv};
    std::vector<std::vector<std::byte>> first;
    for (int threads = 1; threads <= 3; ++threads) {
      for (Tensor* t : {&p.out, &p.lse, &p.dq, &p.dk, &p.dv}) t->fill([](int64_t) { return 77.0; });
      run(Op::attention, isa, threads, p.inputs(), outputs, p.attributes());
      run(Op::attention_grad, isa, threads, p.gradInputs(), gradients, p.attributes());
      std::vector<std::vector<std::byte>> bytes;
      for (Tensor* t : {&p.out, &p.lse, &p.dq, &p.dk, &p.dv}) bytes.push_back(t->bytes());
      if (threads == 1) first = bytes;
      CHECK(bytes == first);
    }
    compare("out", p.out, p.outs, tolerance);
    compare("lse", p.lse, p.lses, tolerance);
    compare("dq", p.dq, p.dqs, tolerance);
    compare("dk", p.dk, p.dks, tolerance);
    compare("dv", p.dv, p.dvs, tolerance);
  });
}

TEST(attention_shapes) {
  check({.batch = 2, .length = 5, .keys = 7, .groups = 2, .features = 8, .valueFeatures = 8});
  check({.length = 1, .keys = 1});
  check({.length = 33, .keys = 140, .groups = 2, .features = 16, .valueFeatures = 40});
  check({.length = 150, .keys = 131, .features = 20, .valueFeatures = 7, .headsFirst = true});
  check({.length = 70, .keys = 30, .features = 256, .valueFeatures = 256});
  check({.length = 20, .keys = 66, .features = 300, .valueFeatures = 512});
  check({.length = 150, .keys = 131, .features = 60, .valueFeatures = 71, .headsFirst = true});
  check({.length = 33, .keys = 140, .groups = 6, .features = 16, .valueFeatures = 40});
  check({.length = 20, .keys = 166, .features = 300, .valueFeatures = 512});
}

TEST(attention_causal) {
  check({.batch = 2, .length = 40, .keys = 40, .features = 16, .valueFeatures = 16, .flags = 1});
  check({.length = 300, .keys = 300, .groups = 2, .features = 64, .valueFeatures = 64, .flags = 1, .headsFirst = true});
  check({.length = 10, .keys = 200, .features = 24, .valueFeatures = 24, .flags = 1});
  check({.length = 200, .keys = 10, .features = 24, .valueFeatures = 24, .flags = 1});
}

TEST(attention_grouped_heads) {
  check({.batch = 2,
         .length = 21,
         .keys = 21,
         .groups = 2,
         .repeats = 4,
         .features = 16,
         .valueFeatures = 16,
         .flags = 1});
  check({.length = 140, .keys = 140, .repeats = 3, .features = 32, .valueFeatures = 32, .flags = 1});
  check({.length = 1, .keys = 90, .repeats = 20, .features = 32, .valueFeatures = 32});
}

TEST(attention_decoding) {
  check({.batch = 2, .length = 3, .keys = 2900, .groups = 2, .features = 64, .valueFeatures = 64});
  check({.length = 2, .keys = 15000, .features = 40, .valueFeatures = 9, .flags = 3, .firstPosition = 9000});
  for (int64_t length = 1; length <= 4; ++length) {
    check({.batch = 2, .length = length, .keys = 290, .groups = 3, .features = 64, .valueFeatures = 64});
    check({.length = length, .keys = 150, .features = 20, .valueFeatures = 9, .flags = 3, .firstPosition = 100});
  }
  check({.length = 1,
         .keys = 200,
         .groups = 2,
         .repeats = 4,
         .features = 48,
         .valueFeatures = 48,
         .flags = 3,
         .firstPosition = 40});
}

TEST(attention_positions_and_segments) {
  for (int32_t flags = 0; flags < 8; ++flags) {
    check({.batch = 2, .length = 130, .keys = 190, .repeats = 2, .features = 16, .valueFeatures = 16, .flags = flags});
  }
  for (int64_t groups : {1, 20}) {  // blind rows
    check({.length = 60,
           .keys = 60,
           .groups = groups,
           .features = 16,
           .valueFeatures = 16,
           .flags = 3,
           .firstPosition = -20});
  }
}

TEST(attention_f64_and_bf16) {
  for (DType type : {DType::f64, DType::bf16}) {
    check({.length = 70,
           .keys = 140,
           .groups = 2,
           .repeats = 2,
           .features = 20,
           .valueFeatures = 33,
           .flags = 7,
           .type = type});
    check({.length = 150, .keys = 150, .features = 64, .valueFeatures = 64, .flags = 1, .type = type});
    check({.length = 2, .keys = 50, .features = 24, .valueFeatures = 24, .flags = 1, .type = type});
    check({.length = 30, .keys = 70, .features = 512, .valueFeatures = 512, .type = type});
  }
}

// Large enough to be multiplied by pairs, where there is a unit for them.
TEST(attention_bf16_pairs) {
  check({.length = 170,
         .keys = 140,
         .groups = 2,
         .repeats = 2,
         .features = 20,
         .valueFeatures = 33,
         .flags = 7,
         .type = DType::bf16});
  check({.batch = 2, .length = 150, .keys = 150, .features = 64, .valueFeatures = 64, .flags = 1, .type = DType::bf16});
  check({.batch = 2, .length = 270, .keys = 133, .features = 40, .valueFeatures = 71, .type = DType::bf16});
  check(
      {.length = 9, .keys = 170, .groups = 2, .repeats = 9, .features = 64, .valueFeatures = 50, .type = DType::bf16});
  check({.length = 33, .keys = 131, .features = 512, .valueFeatures = 470, .flags = 1, .type = DType::bf16});
  check({.length = 300,
         .keys = 300,
         .groups = 1,
         .repeats = 3,
         .features = 48,
         .valueFeatures = 16,
         .flags = 3,
         .type = DType::bf16,
         .headsFirst = true,
         .firstPosition = -20});
}

TEST(attention_empty) {
  check({.batch = 0, .length = 3, .keys = 4, .features = 5, .valueFeatures = 5});
  check({.length = 0, .keys = 4, .features = 5, .valueFeatures = 5});
  check({.length = 3, .keys = 0, .features = 5, .valueFeatures = 5});
  check({.length = 30, .keys = 0, .features = 5, .valueFeatures = 5});
  check({.length = 3, .keys = 4, .groups = 0, .features = 5, .valueFeatures = 5});
  check({.length = 3, .keys = 4, .groups = 2, .repeats = 0, .features = 5, .valueFeatures = 5});
  check({.length = 30, .keys = 4, .features = 0, .valueFeatures = 5});
  check({.length = 30, .keys = 4, .features = 5, .valueFeatures = 0});
}

// A long sequence whose queries' gradients do not fit in a workspace with the keys'.
TEST(attention_long) { check({.length = 4100, .keys = 100, .features = 256, .valueFeatures = 4}); }

template <class Change>
void refusal(const char* word, const Change& change) {
  Problem p(
      {.batch = 2, .length = 5, .keys = 6, .groups = 2, .repeats = 2, .features = 8, .valueFeatures = 4, .flags = 7});
  change(p);
  const Status forward = test::check(Op::attention, p.inputs(), {&p.out, &p.lse}, p.attributes());
  const Status backward = test::check(Op::attention_grad, p.gradInputs(), {&p.dq, &p.dk, &p.dv}, p.attributes());
  const bool both =
      forward.message().find(word) != std::string::npos && backward.message().find(word) != std::string::npos;
  if (!both) fail(__FILE__, __LINE__, std::string(word) + ": " + forward.message() + " | " + backward.message());
}

TEST(attention_refuses) {
  refusal("k's length", [](Problem& p) { p.v.view().dims[1] = 5; });
  refusal("k's heads", [](Problem& p) { p.v.view().dims[2] = 1; });
  refusal("q's features", [](Problem& p) { p.k.view().dims[3] = 7; });
  refusal("v's features", [](Problem& p) { p.out.view().dims[3] = 3; });
  refusal("q's heads", [](Problem& p) { p.lse.view().dims[1] = 3; });
  refusal("multiple", [](Problem& p) {
    p.q.view().dims[2] = 3, p.out.view().dims[2] = 3, p.lse.view().dims[1] = 3, p.dout.view().dims[2] = 3,
    p.dq.view().dims[2] = 3;
  });
  refusal("k is f64", [](Problem& p) { p.k.view().dtype = DType::f64; });
  refusal("lse is bf16", [](Problem& p) { p.lse.view().dtype = DType::bf16; });
  refusal("stride", [](Problem& p) { p.q.view().strides[3] = 2; });
  refusal("positions_q", [](Problem& p) { p.positionsQ.view().dims[1] = 4; });
  refusal("segments_k", [](Problem& p) { p.segmentsK.view().dtype = DType::f32; });
  refusal("unknown bits", [](Problem& p) { p.s.flags = 15; });
  Problem p({.length = 5, .keys = 6, .features = 600, .valueFeatures = 4});
  CHECK(test::check(Op::attention, p.inputs(), {&p.out, &p.lse}, p.attributes()).code() == Code::unsupported);
  Problem r({.length = 5, .keys = 6, .features = 6, .valueFeatures = 4});
  r.dk.view().dims[1] = 5;
  CHECK(!test::check(Op::attention_grad, r.gradInputs(), {&r.dq, &r.dk, &r.dv}, r.attributes()).ok());
  CHECK(!test::check(Op::attention, r.inputs(), {&r.out, &r.lse}, {{2, 0}, {1.0}}).ok());
}

}  // namespace
}  // namespace meshwork::test
