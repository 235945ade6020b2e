// Promises settled from native threads: one thread-safe function per environment, many results per wake-up.
#pragma once
#include <napi.h>

#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <unordered_map>
#include <vector>

#include "addon/args.h"
#include "core/status.h"
#include "runtime/engine.h"

namespace meshwork {

class Promises {
 public:
  explicit Promises(Napi::Env env);
  // From the environment's thread, when no native thread settles any more.
  void close();

  // A new promise, and the completion that settles it: with a Uint8Array of the bytes, or a typed error. The event loop
  // is kept alive until then.
  struct Pending {
    Napi::Promise promise;
    Engine::Completion completion;
    uint64_t id;
  };
  Pending create(Napi::Env env);
  // begin(completion) begins the work of a new promise; throws what it fails with.
  template <class Begin>
  Napi::Value start(Napi::Env env, const Begin& begin) {
    Pending pending = create(env);
    Status status;
    try {
      status = begin(std::move(pending.completion));
    } catch (const std::bad_alloc&) {
      status = Status(Code::outOfMemory, "out of host memory");
    } catch (const std::system_error& error) {
      status = Status(Code::outOfMemory, std::string("no more threads: ") + error.what());
    }
    if (status.ok()) return pending.promise;
    drop(pending.id);
    throw toError(env, status);
  }
  // Forgets a promise whose work could not be started.
  void drop(uint64_t id);

 private:
  struct Result {
    uint64_t id = 0;
    Status status;
    Bytes bytes;
  };
  struct Mailroom {
    std::mutex mutex;
    std::vector<Result> results;
    napi_threadsafe_function wake = nullptr;  // null once closed
  };
  static void settle(napi_env env, napi_value, void* context, void*);
  void settleAll(Napi::Env env);

  napi_env env_;
  std::shared_ptr<Mailroom> mailroom_;
  std::unordered_map<uint64_t, Napi::Promise::Deferred> pending_;
  uint64_t nextId_ = 0;
};

}  // namespace meshwork
