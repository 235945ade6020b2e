// oneDNN's matrix product, for bench/: float32 by dnnl_sgemm, bfloat16 with weights in the layout that it likes best.
// Reads "M N K THREADS f32|bf16" a line, answers {"gflops": ...}.
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

namespace {

double rateOf(double flops, const std::function<void()>& multiply) {
  std::vector<double> rates;
  for (int i = 0; i < 8; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    multiply();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    if (i > 0) rates.push_back(1e-9 * flops / took.count());
  }
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

double float32(int64_t m, int64_t n, int64_t k) {
  std::vector<float> a(static_cast<size_t>(m * k), 0.5f), b(static_cast<size_t>(k * n), 0.25f);
  std::vector<float> c(static_cast<size_t>(m * n));
  return rateOf(2.0 * m * n * k,
                [&] { dnnl_sgemm('N', 'N', m, n, k, 1, a.data(), k, b.data(), n, 0, c.data(), n); });
}

double packed(int64_t m, int64_t n, int64_t k) {
  using namespace dnnl;
  using Type = memory::data_type;
  using Tag = memory::format_tag;
  engine cpu(engine::kind::cpu, 0);
  stream queue(cpu);
  const memory::desc x({m, k}, Type::bf16, Tag::ab), w({k, n}, Type::bf16, Tag::any), y({m, n}, Type::bf16, Tag::ab);
#if DNNL_VERSION_MAJOR >= 3
  const matmul::primitive_desc description(cpu, x, w, y);
#else
  const matmul::primitive_desc description(matmul::desc(x, w, y), cpu);
#endif
  memory a(x, cpu), b(description.weights_desc(), cpu), c(y, cpu);
  const matmul multiply(description);
  return rateOf(2.0 * m * n * k, [&] {
    multiply.execute(queue, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
    queue.wait();
  });
}

}  // namespace

int main() {
  int64_t m = 0, n = 0, k = 0;
  int threads = 1;
  std::string dtype;
  while (std::cin >> m >> n >> k >> threads >> dtype) {
    omp_set_num_threads(threads);
    double rate = 0;
    try {
      rate = dtype == "bf16" ? packed(m, n, k) : float32(m, n, k);
    } catch (const dnnl::error&) {  // no bfloat16 on this processor
    }
    std::cout << "{\"gflops\": " << rate << "}" << std::endl;
  }
}
