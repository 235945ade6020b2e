// What a kernel is: a check, run once when a program is loaded, and a function, run every time.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/opcodes.h"
#include "core/status.h"
#include "core/view.h"

namespace meshwork {

class Pool;

struct Operand {
  std::byte* data = nullptr;  // the first element (every offset is already added); null in check()
  const View* view = nullptr;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }
  int64_t dim(int d) const { return view->dims[d]; }
  int64_t stride(int d) const { return view->strides[d]; }
};

// One instruction as a kernel sees it. Attributes are int32 words; which words are literals, indices into `floats` or
// indices into `table` (what differs between devices and microbatches) is stated in opcodes.h, generated from lib/ops.
struct Call {
  const Operand* in = nullptr;
  const Operand* out = nullptr;
  int inputs = 0;
  int outputs = 0;
  const int32_t* attrs = nullptr;
  int attrCount = 0;
  const double* floats = nullptr;  // the program's constants
  int floatCount = 0;
  const int32_t* table = nullptr;  // the device's constant table, already offset by the running action's base
  int tableCount = 0;
  Pool* pool = nullptr;    // null in check(), and on devices that are not the host's
  void* device = nullptr;  // of backends other than the CPU's: theirs (cuda::Device); null in check()

  double floatAttr(int index) const { return floats[attrs[index]]; }
  int32_t tableAttr(int index) const { return table[attrs[index]]; }
};

// check() sees views and literal attributes, never data or table; it must refuse whatever run() could not do safely for
// *any* data and table: wrong operand counts, ranks, dims, dtypes, strides, attribute counts or values. The decoder has
// already held every operand's extent against its region, and float and table indices against their sections. run()
// never fails, never allocates, never reads or writes outside its operands whatever the data say (token ids!). check()
// is the same function on all backends (native/backend/checks), so that all take the same programs. prepare(), where
// there is one, may do slow things once when a program is loaded on a device (compile, choose): it sees the device, no
// data, and perhaps no table; run() must work without it too.
struct Kernel {
  Op op;
  Status (*check)(const Call& call);
  void (*run)(const Call& call);
  void (*prepare)(const Call& call) = nullptr;
};

// The kernels of one file, as its backend's registry takes them.
struct KernelList {
  const Kernel* kernels;
  int count;
};

}  // namespace meshwork
