// A table of objects named by positive integers that are not used again for a long time, so that stale ones are
// noticed.
#pragma once
#include <cstdint>
#include <memory>
#include <unordered_map>

namespace meshwork {

template <class T>
class Handles {
 public:
  int32_t add(std::shared_ptr<T> object) {
    do {
      next_ = next_ == INT32_MAX ? 1 : next_ + 1;
    } while (objects_.contains(next_));
    objects_.emplace(next_, std::move(object));
    return next_;
  }
  // Null for a handle that was never given or is gone.
  std::shared_ptr<T> find(int32_t handle) const {
    const auto found = objects_.find(handle);
    return found == objects_.end() ? nullptr : found->second;
  }
  bool remove(int32_t handle) { return objects_.erase(handle) == 1; }
  const std::unordered_map<int32_t, std::shared_ptr<T>>& all() const { return objects_; }
  void clear() { objects_.clear(); }

 private:
  std::unordered_map<int32_t, std::shared_ptr<T>> objects_;
  int32_t next_ = 0;
};

}  // namespace meshwork
