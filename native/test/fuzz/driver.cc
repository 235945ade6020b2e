// A small coverage-guided fuzzer for GCC's -fsanitize-coverage=trace-pc (Clang has it too): inputs that reach new edges
// are kept and mutated on. Usage: fuzz INPUTS [--save FOLDER] CORPUS...; the exit code is 1 after a crash, a hang, a
// leak, or an allocation above twice the file.
#include <dirent.h>
#include <sanitizer/common_interface_defs.h>
#include <sanitizer/lsan_interface.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "test/fuzz/target.h"

// Of the sanitizers' allocator; not every compiler ships its header.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*onMalloc)(const volatile void*, size_t),
                                                         void (*onFree)(const volatile void*));

namespace {

constexpr size_t kEdges = 1 << 16;
constexpr size_t kLargestInput = 4096;
constexpr unsigned kHangSeconds = 5;
// What is allocated besides the input: streams, messages, vectors' first elements.
constexpr size_t kSlack = 512;

std::array<uint8_t, kEdges> edges;
std::array<uint8_t, kEdges> known;
uintptr_t previous = 0;

std::string input;
size_t largest = 0;
bool counting = false;

void onMalloc(const volatile void*, size_t bytes) {
  if (counting && bytes > largest) largest = bytes;
}
void onFree(const volatile void*) {}

[[noreturn]] void fail(const char* what) {
  std::ofstream("fuzz-failure", std::ios::binary).write(input.data(), static_cast<std::streamsize>(input.size()));
  std::fprintf(stderr, "%s; the input of %zu bytes is in ./fuzz-failure\n", what, input.size());
  std::_Exit(1);
}
void onAlarm(int) { fail("an input takes more than 5 seconds"); }
void onDeath() { fail("a sanitizer's report"); }

// Counts of an edge in powers of two, so that loops count by their scale.
uint8_t bucket(uint8_t count) {
  uint8_t bit = 0;
  while (count > 0) count = static_cast<uint8_t>(count >> 1), ++bit;
  return bit == 0 ? 0 : static_cast<uint8_t>(1 << (bit - 1));
}

// Runs the input; true when it reached something new.
bool run() {
  edges.fill(0);
  previous = 0;
  largest = 0;
  alarm(kHangSeconds);
  counting = true;
  const size_t fileBytes = meshwork::fuzzOne(input);
  counting = false;
  alarm(0);
  if (largest > 2 * fileBytes + kSlack) fail("an allocation above twice the file");
  bool fresh = false;
  for (size_t i = 0; i < kEdges; ++i) {
    const uint8_t seen = bucket(edges[i]);
    if ((seen & ~known[i]) == 0) continue;
    known[i] |= seen;
    fresh = true;
  }
  return fresh;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  std::string mutate(const std::vector<std::string>& corpus) {
    std::string text = corpus[below(corpus.size())];
    for (size_t n = size_t{1} << below(5); n > 0; --n) change(text, corpus);
    if (text.size() > kLargestInput) text.resize(kLargestInput);
    return text;
  }

 private:
  size_t below(size_t n) { return n == 0 ? 0 : random_() % n; }

  void change(std::string& text, const std::vector<std::string>& corpus) {
    const size_t at = below(text.size() + 1);
    switch (below(9)) {
      case 0:
        if (!text.empty()) text[at % text.size()] ^= static_cast<char>(1 << below(8));
        break;
      case 1:
        if (!text.empty()) text[at % text.size()] = static_cast<char>(random_());
        break;
      case 2:
        text.erase(at, 1 + below(8));
        break;
      case 3:
        text.insert(at, 1, "{}[],:\"0123456789\\eE.-+ "[below(24)]);
        break;
      case 4:
        text.insert(at, meshwork::fuzzWords()[below(meshwork::fuzzWords().size())]);
        break;
      case 5: {  // a piece of another input
        const std::string& other = corpus[below(corpus.size())];
        const size_t from = below(other.size() + 1);
        text.insert(at, other.substr(from, below(64)));
        break;
      }
      case 6: {  // a piece twice
        text.insert(at, text.substr(below(text.size() + 1), below(128)));
        break;
      }
      case 7: {  // another number
        const size_t digit = text.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const size_t end = text.find_first_not_of("0123456789", digit);
        constexpr std::array<const char*, 10> numbers = {"0",
                                                         "1",
                                                         "2",
                                                         "255",
                                                         "65536",
                                                         "4294967296",
                                                         "9007199254740992",
                                                         "9007199254740993",
                                                         "18446744073709551615",
                                                         "18446744073709551616"};
        text.replace(digit, end == std::string::npos ? end : end - digit, numbers[below(numbers.size())]);
        break;
      }
      default:
        text.resize(at);
    }
  }

  std::mt19937_64 random_;
};

void readCorpus(const std::string& folder, std::vector<std::string>* corpus) {
  DIR* const open = ::opendir(folder.c_str());
  if (open == nullptr) return;
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(open)) {
    if (entry->d_name[0] != '.') names.push_back(folder + "/" + entry->d_name);
  }
  ::closedir(open);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    std::ifstream file(name, std::ios::binary);
    corpus->emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
}

// Writes inputs, the shortest first, each that reaches an edge the others have not.
void saveCorpus(std::vector<std::string> useful, const std::string& folder) {
  std::stable_sort(useful.begin(), useful.end(), [](const auto& a, const auto& b) { return a.size() < b.size(); });
  known.fill(0);
  std::array<bool, kEdges> covered = {};
  size_t number = 0;
  for (const std::string& each : useful) {
    input = each;
    run();
    bool fresh = false;
    for (size_t i = 0; i < kEdges; ++i) {
      if (edges[i] == 0 || covered[i]) continue;
      covered[i] = fresh = true;
    }
    if (!fresh) continue;
    std::ofstream(folder + "/" + std::to_string(number++), std::ios::binary)
        .write(each.data(), static_cast<std::streamsize>(each.size()));
  }
}

}  // namespace

extern "C" __attribute__((no_sanitize_address, no_sanitize_undefined)) void __sanitizer_cov_trace_pc() {
  const auto place = reinterpret_cast<uintptr_t>(__builtin_return_address(0));
  const uintptr_t mixed = (place >> 1) * 0x9e3779b97f4a7c15u >> 44;
  uint8_t& edge = edges[(mixed ^ previous) % kEdges];
  if (edge < 255) ++edge;
  previous = mixed >> 1;
}

int main(int argc, char** argv) {
  const long inputs = argc > 1 ? std::strtol(argv[1], nullptr, 10) : 0;
  std::vector<std::string> corpus;
  std::string save;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--save") == 0 && i + 1 < argc) {
      save = argv[++i];
    } else {
      readCorpus(argv[i], &corpus);
    }
  }
  if (corpus.empty()) corpus.emplace_back("{}");
  signal(SIGALRM, onAlarm);
  __sanitizer_install_malloc_and_free_hooks(onMalloc, onFree);
  __sanitizer_set_death_callback(onDeath);
  const size_t given = corpus.size();
  std::vector<std::string> useful;
  for (const std::string& each : corpus) {
    input = each;
    if (run()) useful.push_back(each);
  }
  Mutator mutator(20261121);
  for (long n = 0; n < inputs; ++n) {
    input = mutator.mutate(corpus);
    if (run()) {
      corpus.push_back(input);
      useful.push_back(input);
    }
    if (n % 100000 == 99999 && __lsan_do_recoverable_leak_check() != 0) fail("a leak");
  }
  if (__lsan_do_recoverable_leak_check() != 0) fail("a leak");
  const auto reached = std::count_if(known.begin(), known.end(), [](uint8_t seen) { return seen != 0; });
  std::printf("%ld inputs and %zu of the corpus: %ld edges, %zu inputs that reach something new\n", inputs, given,
              static_cast<long>(reached), useful.size());
  if (!save.empty()) saveCorpus(std::move(useful), save);
  return 0;
}
