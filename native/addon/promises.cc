// Settles promises on the event loop.
#include "addon/promises.h"

#include <cstring>

#include "addon/args.h"

namespace meshwork {

Promises::Promises(Napi::Env env) : env_(env), mailroom_(std::make_shared<Mailroom>()) {
  const Napi::String name = Napi::String::New(env, "meshwork");
  const napi_status status = napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this,
                                                             settle, &mailroom_->wake);
  if (status != napi_ok) throw Napi::Error::New(env, "cannot make a thread-safe function");
  napi_unref_threadsafe_function(env, mailroom_->wake);
}

void Promises::close() {
  napi_threadsafe_function wake = nullptr;
  {
    const std::lock_guard lock(mailroom_->mutex);
    std::swap(wake, mailroom_->wake);
    mailroom_->results.clear();
  }
  if (wake != nullptr) napi_release_threadsafe_function(wake, napi_tsfn_abort);
  pending_.clear();
}

Promises::Pending Promises::create(Napi::Env env) {
  const uint64_t id = ++nextId_;
  const Napi::Promise::Deferred deferred = Napi::Promise::Deferred::New(env);
  if (pending_.empty()) napi_ref_threadsafe_function(env, mailroom_->wake);
  pending_.emplace(id, deferred);
  auto completion = [mailroom = mailroom_, id](const Status& status, Bytes bytes) {
    const std::lock_guard lock(mailroom->mutex);
    if (mailroom->wake == nullptr) return;
    mailroom->results.push_back(Result{id, status, std::move(bytes)});
    if (mailroom->results.size() == 1) napi_call_threadsafe_function(mailroom->wake, nullptr, napi_tsfn_nonblocking);
  };
  return Pending{deferred.Promise(), std::move(completion), id};
}

void Promises::drop(uint64_t id) {
  pending_.erase(id);
  if (pending_.empty()) napi_unref_threadsafe_function(env_, mailroom_->wake);
}

void Promises::settle(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;  // the environment is going away
  try {
    static_cast<Promises*>(context)->settleAll(env);
  } catch (const Napi::Error& error) {
    error.ThrowAsJavaScriptException();
  } catch (const std::exception& error) {
    napi_throw_error(env, "internal", error.what());
  }
}

void Promises::settleAll(Napi::Env env) {
  const Napi::HandleScope scope(env);
  std::vector<Result> results;
  {
    const std::lock_guard lock(mailroom_->mutex);
    results.swap(mailroom_->results);
  }
  for (Result& result : results) {
    const auto found = pending_.find(result.id);
    if (found == pending_.end()) continue;
    const Napi::Promise::Deferred deferred = found->second;
    drop(result.id);
    if (!result.status.ok()) {
      deferred.Reject(toError(env, result.status).Value());
      continue;
    }
    try {
      const auto size = static_cast<size_t>(result.bytes.size);
      Napi::Uint8Array bytes = Napi::Uint8Array::New(env, size);
      if (size > 0) std::memcpy(bytes.Data(), result.bytes.data.get(), size);
      deferred.Resolve(bytes);
    } catch (const Napi::Error& error) {
      deferred.Reject(error.Value());
    }
  }
}

}  // namespace meshwork
