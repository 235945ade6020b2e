// Work for JavaScript on threads of its own: neither the event loop nor libuv's few threads wait for disks.
#pragma once
#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <thread>

#include "io/host_memory.h"

namespace meshwork {

class Jobs {
 public:
  ~Jobs() { finish(); }
  // Starts a thread; `memory` (may be null) is what ends the work early.
  void start(std::shared_ptr<HostMemory> memory, std::function<void()> work) {
    sweep();
    Job& job = jobs_.emplace_back();
    job.memory = std::move(memory);
    try {
      job.thread = std::thread([&job, work = std::move(work)] {
        work();
        job.over.store(true);
      });
    } catch (...) {
      jobs_.pop_back();
      throw;
    }
  }
  // Ends what can be ended early, and waits for all.
  void finish() {
    for (Job& job : jobs_) {
      if (job.memory != nullptr) job.memory->stop.store(true);
    }
    for (Job& job : jobs_) job.thread.join();
    jobs_.clear();
  }

 private:
  struct Job {
    std::shared_ptr<HostMemory> memory;
    std::atomic<bool> over{false};
    std::thread thread;
  };
  void sweep() {
    for (auto job = jobs_.begin(); job != jobs_.end();) {
      if (!job->over.load()) {
        ++job;
        continue;
      }
      job->thread.join();
      job = jobs_.erase(job);
    }
  }

  std::list<Job> jobs_;
};

}  // namespace meshwork
