// The executor of devices whose kernels are done when they return.
#pragma once
#include "runtime/executor.h"

namespace meshwork {

class HostExecutor final : public Executor {
 public:
  using Executor::Executor;
  Status run(const DeviceRun& run) override;

 private:
  Status segment(const Action& action) override;
  Status transfer(const Action& action) override;
  Status wait(const Action& action) override;
  void copy(const Action& action) override;
  double now() const;
  void record(int32_t op, const char* label, double begin);
};

}  // namespace meshwork
