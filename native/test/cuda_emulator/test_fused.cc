// Generated elementwise kernels: their source, compiled by the host's compiler and run on the emulator, gives the bits
// of the interpreting kernel (which test_elementwise.cc holds against float64); nvcc, where there is one, takes it too.
// And the cache of compiled kernels.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "backend/cuda/elementwise/cache.h"
#include "backend/cuda/elementwise/fused.h"
#include "backend/cuda/elementwise/generate.h"
#include "core/digest.h"
#include "test/kernel_test.h"

namespace meshwork::test {
namespace {

namespace fs = std::filesystem;

std::string readFile(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void writeFile(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

// A folder of its own, gone afterwards.
struct Folder {
  fs::path path;
  Folder() {
    std::string name = (fs::temp_directory_path() / "meshwork-fused-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path, error);
  }
};

// The host's compiler in place of NVRTC: the source as plain C++, as a shared library that launches it on the emulator.
class HostCompiler final : public cuda::FusedCompiler {
 public:
  HostCompiler(fs::path folder, int* compiled, std::vector<std::string>* sources)
      : folder_(std::move(folder)), compiled_(compiled), sources_(sources) {}

  std::string identity(const cuda::Device&) const override { return "host " + folder_.string(); }

  Status compile(const cuda::Device&, const std::string& source, std::string* code) override {
    ++*compiled_;
    sources_->push_back(source);
    const fs::path file = next(".cc"), library = next(".so");
    writeFile(file, "#include <cuda_runtime.h>\n" + source +
                        "extern \"C\" bool meshworkLaunch(unsigned blocks, const void* words) {\n"
                        "  Parameters p;\n  __builtin_memcpy(&p, words, sizeof p);\n"
                        "  return meshwork::emulator::launch(blocks, 256, 0, meshworkFused, p);\n}\n");
    const std::string command = std::string(MESHWORK_TEST_CXX) +
                                " -std=c++20 -O1 -Wall -Wextra -Werror -Wno-unknown-pragmas -ffp-contract=off -shared "
                                "-fPIC -DMESHWORK_CUDA_EMULATOR=1 " MESHWORK_TEST_INCLUDES " -o " +
                                library.string() + " " + file.string();
    if (std::system(command.c_str()) != 0) return Status(Code::internal, "the generated source does not compile");
    *code = readFile(library);
    return Status();
  }
  Status load(const std::string& code, void** kernel) override {
    const fs::path library = next(".so");
    writeFile(library, code);
    *kernel = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    return *kernel != nullptr ? Status() : Status(Code::internal, dlerror());
  }
  void unload(void* kernel) override { dlclose(kernel); }
  void launch(cuda::Device&, void* kernel, unsigned blocks, const std::vector<int64_t>& parameters) override {
    const auto start = reinterpret_cast<bool (*)(unsigned, const void*)>(dlsym(kernel, "meshworkLaunch"));
    CHECK(start != nullptr && start(blocks, parameters.data()));
  }

 private:
  fs::path next(const char* suffix) { return folder_ / (std::to_string(++number_) + suffix); }
  fs::path folder_;
  int* compiled_;
  std::vector<std::string>* sources_;
  int number_ = 0;
};

// The same numbers, or NaN (of any sign) on both sides.
void checkSame(const Tensor& t, const std::vector<std::byte>& bytes) {
  if (t.bytes() == bytes) return;
  Tensor other = t;
  other.setBytes(bytes);
  for (int64_t i = 0; i < t.count(); ++i) CHECK_NEAR(t.get(i), other.get(i), 0);
}

struct Fused {
  Folder folder;
  int compiled = 0;
  std::vector<std::string> sources;
  cuda::Device device;
  Fused() {
    device.multiprocessors = 3;
    cuda::setFusedCompiler(device, std::make_unique<HostCompiler>(folder.path, &compiled, &sources), "");
  }
  ~Fused() { device.states[cuda::kElementwiseState].reset(); }

  // Runs a call interpreted and compiled.
  void compare(const Instruct& call) {
    CHECK_EQ(call.check().message(), std::string());
    std::vector<std::vector<std::byte>> before, interpreted;
    for (const Tensor* t : call.out) before.push_back(t->bytes());
    call.run();
    for (size_t k = 0; k < call.out.size(); ++k) {
      interpreted.push_back(call.out[k]->bytes());
      call.out[k]->setBytes(before[k]);
    }
    const int compiledBefore = compiled;
    call.runOn([&](Call c) {
      c.device = &device;
      cuda::findKernel(call.op)->run(c);
      CHECK_EQ(compiled, compiledBefore + 1);
      for (size_t k = 0; k < call.out.size(); ++k) {
        checkSame(*call.out[k], interpreted[k]);
        call.out[k]->setBytes(before[k]);
      }
      cuda::findKernel(call.op)->run(c);  // found again
      CHECK_EQ(compiled, compiledBefore + 1);
      for (size_t k = 0; k < call.out.size(); ++k) checkSame(*call.out[k], interpreted[k]);
    });
    CHECK_EQ(emulator::takeError(), std::string());
  }
};

constexpr int32_t kF32 = 0, kF64 = 1, kI32 = 2;

struct Word {
  EOp op;
  int32_t type, a = 0, b = 0, c = 0;
};

Instruct expression(std::vector<Tensor*> in, std::vector<Tensor*> out, const std::vector<Word>& words,
                    const std::vector<int32_t>& outputs, std::vector<double> floats = {},
                    std::vector<int32_t> table = {}) {
  Instruct x{Op::elementwise, std::move(in), std::move(out), {static_cast<int32_t>(words.size())}};
  for (const Word& w : words) x.attrs.insert(x.attrs.end(), {static_cast<int32_t>(w.op), w.type, w.a, w.b, w.c});
  x.attrs.push_back(static_cast<int32_t>(outputs.size()));
  x.attrs.insert(x.attrs.end(), outputs.begin(), outputs.end());
  x.floats = std::move(floats);
  x.table = std::move(table);
  return x;
}

// Every operation of a type, each an output.
void everyOperation(Fused& fused, DType dtype, int64_t n) {
  const int32_t type = dtype == DType::f64 ? kF64 : dtype == DType::i32 ? kI32 : kF32;
  std::vector<Word> words;
  std::vector<int32_t> outputs;
  std::vector<Tensor> results;
  for (int32_t code = 0; code < kEOpCount; ++code) {
    const auto op = static_cast<EOp>(code);
    const bool floatOnly = (op >= EOp::exp_ && op <= EOp::silu_grad_) || op == EOp::pow_ || op == EOp::round_to_;
    if (op == EOp::const_ || op == EOp::iota_ || (type == kI32 && floatOnly)) continue;
    if (op == EOp::round_to_ && type != kF32) continue;
    Word w{op, type, 0, 1, 1};
    if (op == EOp::round_to_) w.b = static_cast<int32_t>(DType::bf16);
    if (op == EOp::select_) w = {op, type, 2, 0, 1};
    words.push_back(w);
    outputs.push_back(static_cast<int32_t>(2 + words.size()));
    const bool test = op == EOp::not_ || op == EOp::is_finite_ || (op >= EOp::eq_ && op <= EOp::or_);
    results.emplace_back(test ? DType::i32 : dtype, Dims{n});
  }
  Tensor a(dtype, {n}), b(dtype, {n}), c(DType::boolean, {n});
  a.random(-4, 4, 1);
  b.random(-4, 4, 2);
  c.fill([](int64_t i) { return static_cast<double>(i % 2); });
  for (int64_t i = 0; i < n; i += 7) b.set(i, a.get(i));
  if (dtype != DType::i32) a.set(3, std::nan(""));
  std::vector<Tensor*> out;
  for (Tensor& t : results) out.push_back(&t);
  fused.compare(expression({&a, &b, &c}, out, words, outputs));
}

// Whether nvcc takes all the sources, each under another name.
void compileWithNvcc(const Fused& fused) {
  const std::string nvcc = MESHWORK_TEST_NVCC;
  if (nvcc.empty()) return;
  std::string all;
  for (size_t i = 0; i < fused.sources.size(); ++i) {
    std::string text = fused.sources[i];
    const std::string number = std::to_string(i);
    for (const std::string word : {"Parameters", "meshworkFused"}) {
      for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + word.size() + 1)) {
        text.insert(at + word.size(), number);
      }
    }
    all += text;
  }
  const fs::path file = fused.folder.path / "all.cu", cubin = fused.folder.path / "all.cubin";
  writeFile(file, all);
  const std::string command = nvcc + " -std=c++17 -arch=sm_90 -fmad=false -Werror=all-warnings -cubin -o " +
                              cubin.string() + " " + file.string();
  CHECK_EQ(std::system(command.c_str()), 0);
  CHECK(fs::exists(cubin));
}

TEST(fused_source) {
  Fused fused;
  everyOperation(fused, DType::f32, 1500);
  everyOperation(fused, DType::f64, 301);
  everyOperation(fused, DType::i32, 64);
  {  // a row, a column and a transposed operand; padded rows; packs of eight
    Tensor a(DType::bf16, {5, 768}, {776, 1}), row(DType::f32, {5, 768}, {0, 1}), column(DType::f32, {5, 768}, {1, 0}),
        across(DType::f32, {5, 768}, {1, 5}), one(DType::f32, {5, 768}, {0, 0}), y(DType::bf16, {5, 768}, {784, 1}),
        z(DType::f32, {5, 768});
    for (Tensor* t : {&a, &row, &column, &across, &one}) t->random(-2, 2, 9);
    fused.compare(expression({&a, &row, &column, &across, &one}, {&y, &z},
                             {{EOp::add_, kF32, 0, 1},
                              {EOp::mul_, kF32, 5, 2},
                              {EOp::sub_, kF32, 6, 3},
                              {EOp::mul_, kF32, 7, 4},
                              {EOp::gelu_, kF32, 8}},
                             {9, 8}));
  }
  {  // indices, constants, casts, tests as bool, an output in another order
    Tensor x(DType::f64, {3, 4, 10}), y(DType::f32, {3, 4, 10}, {1, 30, 3}), flag(DType::boolean, {3, 4, 10}),
        whole(DType::i32, {3, 4, 10});
    x.random(-5e9, 5e9, 4);
    fused.compare(expression({&x}, {&y, &flag, &whole},
                             {{EOp::iota_, kI32, 0, 1},
                              {EOp::iota_, kF64, 2, -1},
                              {EOp::cast_, kI32, 0},
                              {EOp::add_, kF64, 0, 2},
                              {EOp::const_, kF64, 0},
                              {EOp::lt_, kF64, 4, 5},
                              {EOp::const_, kF32, 1},
                              {EOp::cast_, kF32, 4},
                              {EOp::select_, kF32, 6, 7, 8},
                              {EOp::const_, kI32, 2},
                              {EOp::mul_, kI32, 1, 10},
                              {EOp::add_, kI32, 3, 11}},
                             {9, 6, 12}, {0.25, -std::numeric_limits<double>::infinity(), 1e12}, {7, -3}));
  }
  {  // neighbours counted in packs, and packs of what is stored in bytes
    Tensor y(DType::i32, {6, 16}), flag(DType::boolean, {6, 16}), in(DType::boolean, {6, 16});
    in.fill([](int64_t i) { return static_cast<double>(i % 3 == 0); });
    fused.compare(expression({&in}, {&y, &flag}, {{EOp::iota_, kI32, 1, 0}, {EOp::not_, kI32, 0}}, {1, 2}, {}, {40}));
  }
  compileWithNvcc(fused);
}

TEST(fused_is_prepared_without_data) {
  Fused fused;
  Tensor x(DType::f32, {64}), y(DType::f32, {64});
  x.random(-1, 1, 1);
  const Instruct call = expression({&x}, {&y}, {{EOp::neg_, kF32, 0}}, {1});
  call.prepareOn([&](Call c) {
    c.device = &fused.device;
    cuda::findKernel(call.op)->prepare(c);
  });
  CHECK_EQ(fused.compiled, 1);
  call.runOn([&](Call c) {
    c.device = &fused.device;
    cuda::findKernel(call.op)->run(c);
  });
  CHECK_EQ(fused.compiled, 1);
  for (int64_t i = 0; i < 64; ++i) CHECK_EQ(y.get(i), -x.get(i));
}

TEST(fused_keys_differ_where_sources_do) {
  Tensor x(DType::f32, {64}), y(DType::f32, {64}), z(DType::f32, {8, 8}), w(DType::f32, {8, 8});
  static cuda::ElementLayout layout;
  std::vector<std::string> keys, sources;
  const auto add = [&](const Instruct& call) {
    call.runOn([&](const Call& c) {
      cuda::layOut(c, layout);
      keys.push_back(cuda::fusedKey(c, layout));
      sources.push_back(cuda::fusedSource(c, layout));
    });
  };
  const auto scaled = [](Tensor* a, Tensor* b, double by) {
    return expression({a}, {b}, {{EOp::const_, kF32, 0}, {EOp::mul_, kF32, 0, 1}}, {2}, {by});
  };
  add(scaled(&x, &y, 2));
  add(scaled(&x, &y, 3));
  add(scaled(&z, &w, 2));  // other dims, the same loops
  CHECK(keys[0] != keys[1] && sources[0] != sources[1]);
  CHECK(keys[0] == keys[2] && sources[0] == sources[2]);
}

TEST(kernel_cache) {
  const Folder folder;
  const std::string inside = (folder.path / "a" / "b").string(), code("\0code\xff", 6);
  std::string read;
  CHECK(!cuda::readKernel(inside, "k", &read));
  cuda::writeKernel(inside, "k", code);
  CHECK(cuda::readKernel(inside, "k", &read));
  CHECK(read == code);
  CHECK_EQ(std::distance(fs::directory_iterator(inside), fs::directory_iterator()), 1);  // nothing left beside it
  std::string damaged = readFile(fs::path(inside) / "k");
  damaged.back() ^= 1;
  writeFile(fs::path(inside) / "k", damaged);
  CHECK(!cuda::readKernel(inside, "k", &read));
  writeFile(fs::path(inside) / "k", "short");
  CHECK(!cuda::readKernel(inside, "k", &read));
  cuda::writeKernel("", "k", code);
  CHECK(!cuda::readKernel("", "k", &read));
  cuda::writeKernel("/proc/no/such/folder", "k", code);  // cannot be kept: no matter
}

TEST(digest_known_answers) {
  CHECK_EQ(hexDigest(""), std::string("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
  CHECK_EQ(hexDigest("abc"), std::string("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
  CHECK_EQ(hexDigest("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
           std::string("248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"));
  CHECK_EQ(hexDigest(std::string(1000000, 'a')),
           std::string("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
}

}  // namespace
}  // namespace meshwork::test
