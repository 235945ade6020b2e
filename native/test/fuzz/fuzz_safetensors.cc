// The reader of safetensors files on any bytes, by way of a file in memory; what it accepts is walked through.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "io/safetensors.h"
#include "test/fuzz/target.h"

namespace meshwork {
namespace {

void walk(const Safetensors& index) {
  for (const TensorEntry& tensor : index.tensors) {
    int64_t bytes = safetensorsDtypeBytes(tensor.dtype);
    for (int d = 0; d < tensor.rank; ++d) bytes *= index.dims.at(tensor.dims + static_cast<size_t>(d));
    if (index.nameOf(tensor).empty() || tensor.end - tensor.begin != bytes) std::abort();
    if (tensor.begin < 8 || tensor.end > index.file->size()) std::abort();
  }
}

}  // namespace

// Mutations seldom keep the length before the header right: each input is read as it is, and as a header with a right
// length and as many bytes of data as its first byte says.
size_t fuzzOne(const std::string& input) {
  static const int memory = ::memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(memory);
  size_t largest = 0;
  const size_t header = input.empty() ? 0 : input.size() - 1;
  for (const bool mended : {false, true}) {
    std::string bytes = input;
    bytes.reserve(input.size() + 264);
    if (mended) {
      bytes.clear();
      for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(header >> (8 * i) & 0xff));
      if (!input.empty()) bytes += input.substr(1) + std::string(static_cast<unsigned char>(input[0]), '\0');
    }
    if (::ftruncate(memory, 0) != 0 || ::pwrite(memory, bytes.data(), bytes.size(), 0) < 0) std::abort();
    Safetensors index;
    if (openSafetensors(path, true, &index).ok()) walk(index);
    largest = std::max(largest, bytes.size());
  }
  return largest;
}

const std::vector<std::string>& fuzzWords() {
  static const std::vector<std::string> words = {"\"__metadata__\":{\"format\":\"pt\"},",
                                                 "\"w\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}",
                                                 "\"b\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[24,26]}",
                                                 "\"e\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[0,0]}",
                                                 "\"dtype\":\"U8\"",
                                                 "\"shape\":[1,1,1,1,1,1,1,1]",
                                                 "\"data_offsets\":[0,0]",
                                                 "\\u0041",
                                                 "\\ud83d\\ude00",
                                                 "\xc3\xa9",
                                                 "F8_E4M3"};
  return words;
}

}  // namespace meshwork
