// Engines on the emulated CUDA backend, for tests: with collectives in-process, or by the stand-in for NCCL.
#pragma once
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <future>

#include "runtime/engine.h"
#include "test/cuda_emulator/hooks.h"
#include "test/harness.h"
#include "test/programs.h"

namespace meshwork::test::cuda_engine {

inline const emulator::Hooks& hooks() {
  static const emulator::Hooks* found = [] {
    setenv("MESHWORK_CUDA_LIBRARY", MESHWORK_EMULATED_LIBRARY, 1);
    setenv("MESHWORK_CUDA_PATH", MESHWORK_STAND_IN_FOLDER, 1);
    void* library = dlopen(MESHWORK_EMULATED_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) std::abort();
    return reinterpret_cast<emulator::HooksFunction>(dlsym(library, emulator::kHooksName))();
  }();
  return *found;
}

struct Outcome {
  Status status;
  std::vector<float> output;
};

class Fixture {
 public:
  explicit Fixture(int devices, int gpus = 1, int64_t timeoutMs = 60000, const char* collectives = "in-process") {
    hooks().resetDevices();
    setenv("MESHWORK_EMULATED_GPUS", std::to_string(gpus).c_str(), 1);
    setenv("MESHWORK_COLLECTIVES", collectives, 1);
    EngineOptions options;
    options.backend = "cuda";
    options.devices = devices;
    options.timeoutMs = timeoutMs;
    const Status status = Engine::open(options, &engine);
    if (!status.ok()) test::fail(__FILE__, __LINE__, status.message());
  }
  int32_t load(const std::vector<Words>& programs, int64_t inputBytes, int64_t outputBytes) {
    std::vector<std::vector<int32_t>> none(programs.size());
    std::vector<std::span<const int32_t>> words(programs.begin(), programs.end()), bound(none.begin(), none.end());
    int32_t executable = 0;
    const Status status = engine->load(words, bound, inputBytes, outputBytes, &executable);
    if (!status.ok()) test::fail(__FILE__, __LINE__, status.message());
    return executable;
  }
  Outcome run(int32_t executable, const std::vector<float>& input) {
    auto promise = std::make_shared<std::promise<Outcome>>();
    std::future<Outcome> future = promise->get_future();
    const auto size = static_cast<int64_t>(input.size() * sizeof(float));
    Bytes bytes{std::make_unique<std::byte[]>(static_cast<size_t>(size)), size};
    if (size > 0) std::memcpy(bytes.data.get(), input.data(), static_cast<size_t>(size));
    const Status status = engine->run(executable, std::move(bytes), 0, [promise](const Status& result, Bytes output) {
      Outcome outcome{result, std::vector<float>(static_cast<size_t>(output.size) / sizeof(float))};
      if (output.size > 0) std::memcpy(outcome.output.data(), output.data.get(), static_cast<size_t>(output.size));
      promise->set_value(std::move(outcome));
    });
    return status.ok() ? future.get() : Outcome{status, {}};
  }
  std::unique_ptr<Engine> engine;
};

// Rank d: x = its 4 floats; y = x copied; z = sum of all ranks' y; w = z copied four times over in turn; out w.
inline std::vector<Words> sums(int devices, int copies = 6) {
  std::vector<Words> programs;
  Words everybody;
  for (int d = 0; d < devices; ++d) everybody.push_back(d);
  for (int d = 0; d < devices; ++d) {
    ProgramSource p;
    const int32_t v = p.view(DType::f32, {4});
    p.table = {0};
    p.groups = {everybody};
    p.labels = {"before", "meet", "after"};
    std::vector<Words> segment = {instruction(Op::copy, {{0, 0, v}}, {{0, 1, v}}, {}, 0),
                                  instruction(Op::all_reduce, {{0, 1, v}}, {{0, 2, v}}, {0, 0}, 1)};
    for (int i = 0; i < copies; ++i) {
      segment.push_back(instruction(Op::copy, {{0, 2 + i, v}}, {{0, 3 + i, v}}, {}, 2));
    }
    p.segment(segment);
    p.feed(16 * d, 0, 16);
    p.run(0);
    p.fetch(0, 2 + copies, 16 * d, 16);
    programs.push_back(p.words());
  }
  return programs;
}

inline std::vector<float> counting(int n) {
  std::vector<float> values;
  for (int i = 0; i < n; ++i) values.push_back(static_cast<float>(i));
  return values;
}

inline void checkSums(const std::vector<float>& output, int devices) {
  CHECK_EQ(output.size(), static_cast<size_t>(4 * devices));
  for (size_t i = 0; i < output.size(); ++i) {
    float sum = 0;
    for (int d = 0; d < devices; ++d) sum += static_cast<float>(4 * d + static_cast<int>(i % 4));
    CHECK_EQ(output[i], sum);
  }
}

// Every device sends its 4 floats to the next one and gives out what it got; three runs.
inline void checkRing(Fixture& f, int devices) {
  std::vector<Words> programs;
  for (int d = 0; d < devices; ++d) {
    ProgramSource p;
    const int32_t v = p.view(DType::f32, {4});
    p.feed(16 * d, 0, 16);
    p.transfer({{0, (d + 1) % devices, 9, 0, v}, {1, (d + devices - 1) % devices, 9, 1, v}});
    p.wait(0);
    p.fetch(0, 1, 16 * d, 16);
    programs.push_back(p.words());
  }
  const int32_t executable = f.load(programs, 16 * devices, 16 * devices);
  const std::vector<float> input = counting(4 * devices);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const Outcome outcome = f.run(executable, input);
    CHECK_EQ(outcome.status.message(), std::string());
    for (size_t i = 0; i < outcome.output.size(); ++i) CHECK_EQ(outcome.output[(i + 4) % input.size()], input[i]);
  }
}

}  // namespace meshwork::test::cuda_engine
