// What a fuzzer runs: one of fuzz_*.cc.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace meshwork {

// Returns the bytes of the largest file that it made of the input.
size_t fuzzOne(const std::string& input);

// Words of the format, which mutations insert.
const std::vector<std::string>& fuzzWords();

}  // namespace meshwork
