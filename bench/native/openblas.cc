// OpenBLAS's matrix product, for bench/. Reads "M N K THREADS f32" a line, answers {"gflops": ...}.
#include <cblas.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <string>
#include <vector>

extern "C" void openblas_set_num_threads(int);

int main() {
  int m = 0, n = 0, k = 0, threads = 1;
  std::string dtype;
  while (std::cin >> m >> n >> k >> threads >> dtype) {
    openblas_set_num_threads(threads);
    std::vector<float> a(static_cast<size_t>(m) * k, 0.5f), b(static_cast<size_t>(k) * n, 0.25f);
    std::vector<float> c(static_cast<size_t>(m) * n);
    std::vector<double> rates;
    for (int i = 0; i < 8; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, a.data(), k, b.data(), n, 0, c.data(), n);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      if (i > 0) rates.push_back(2e-9 * m * n * k / took.count());
    }
    std::sort(rates.begin(), rates.end());
    std::cout << "{\"gflops\": " << rates[rates.size() / 2] << "}" << std::endl;
  }
}
