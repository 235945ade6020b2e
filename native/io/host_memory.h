// Host memory that a checkpoint passes through, between the devices and the files.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"
#include "io/output.h"

namespace meshwork {

class HostMemory {
 public:
  // Zeroed memory; its pages come when they are first touched.
  static Status allocate(int64_t bytes, std::shared_ptr<HostMemory>* memory);
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Touches every page, so that the first copy into it is no slower than the next. Keeps what is there.
  void touch();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // Ends the work that is done with it.
  Stop stop{false};

 private:
  HostMemory(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}
  std::byte* const data_;
  const int64_t bytes_;
};

}  // namespace meshwork
