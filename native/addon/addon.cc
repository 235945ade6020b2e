// The Node-API addon: its entry point, the state of an environment, and the functions it exports.
#include <napi.h>

#include <cstring>

#include "addon/args.h"
#include "addon/checkpoints.h"
#include "addon/files.h"
#include "addon/promises.h"
#include "addon/stats.h"
#include "backend/cpu/isa.h"
#include "core/opcodes.h"
#include "runtime/cuda_libraries.h"
#include "runtime/engine.h"
#include "runtime/machine.h"

namespace meshwork {
namespace {

// All a JavaScript environment (the main thread or a worker) has open.
struct State {
  explicit State(Napi::Env env) : promises(env) {}
  Promises promises;
  Handles<Engine> engines;
  Handles<File> files;
  CheckpointState checkpoints;

  // Threads are joined here, before the environment goes; finalizers may never come.
  static void cleanUp(void* data) {
    auto* state = static_cast<State*>(data);
    state->engines.clear();
    state->checkpoints.jobs.finish();
    state->promises.close();
  }
};

State& stateOf(const Args& args) { return *args.env().GetInstanceData<State>(); }

// Held while an argument is read: that can run JavaScript, which can close the engine.
std::shared_ptr<Engine> engineOf(const Args& args) {
  const int32_t handle = args.handle(0, "engine");
  std::shared_ptr<Engine> engine = stateOf(args).engines.find(handle);
  if (engine == nullptr) {
    throw toError(args.env(),
                  Status(Code::invalidArgument, "engine " + std::to_string(handle) + " is closed or unknown"));
  }
  return engine;
}

Napi::Value number(const Args& args, double value) { return Napi::Number::New(args.env(), value); }

std::vector<std::span<const int32_t>> spans(const std::vector<std::vector<int32_t>>& lists) {
  return std::vector<std::span<const int32_t>>(lists.begin(), lists.end());
}

Bytes copyOf(const ViewBytes& view) {
  Bytes bytes{std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(view.size)), view.size};
  if (view.size > 0) std::memcpy(bytes.data.get(), view.data, static_cast<size_t>(view.size));
  return bytes;
}

template <class Start>
Napi::Value promise(const Args& args, const Start& start) {
  return stateOf(args).promises.start(args.env(), start);
}

Napi::Value info(const Args& args) {
  Napi::Object result = Napi::Object::New(args.env());
  result["opTableHash"] = number(args, kOpTableHash);
  result["isa"] = Napi::String::New(args.env(), machineIsa());
  result["kernels"] = Napi::String::New(args.env(), isaName(activeIsa()));
  result["cores"] = number(args, machineCores());
  return result;
}

// cudaStatus(): {gpus, detail}
Napi::Value cudaStatus(const Args& args) {
  std::string detail;
  Napi::Object result = Napi::Object::New(args.env());
  result["gpus"] = number(args, countCudaGpus(&detail));
  result["detail"] = Napi::String::New(args.env(), detail);
  return result;
}

// cudaLibraries(): {name, version, detail}[]
Napi::Value cudaLibraries(const Args& args) {
  const std::vector<CudaLibrary> found = findCudaLibraries();
  Napi::Array result = Napi::Array::New(args.env(), found.size());
  for (uint32_t i = 0; i < found.size(); ++i) {
    Napi::Object library = Napi::Object::New(args.env());
    library["name"] = Napi::String::New(args.env(), found[i].name);
    library["version"] = Napi::String::New(args.env(), found[i].version);
    library["detail"] = Napi::String::New(args.env(), found[i].detail);
    result[i] = library;
  }
  return result;
}

// Tells the garbage collector what native memory its objects stand for, from what the engine held before.
void reportMemory(const Args& args, int64_t before, int64_t after) {
  if (after != before) Napi::MemoryManagement::AdjustExternalMemory(args.env(), after - before);
}

// engineOpen(backend, devices, threads, unbuffered, timeoutMs, pin): handle
Napi::Value engineOpen(const Args& args) {
  EngineOptions options;
  options.backend = args.string(0, "backend");
  options.devices = static_cast<int>(args.integer(1, "devices", 1, 1024));
  options.threads = static_cast<int>(args.integer(2, "threads", 0, 1024));
  options.unbuffered = args.boolean(3, "unbuffered");
  options.timeoutMs = args.integer(4, "timeoutMs", 0, INT32_MAX);
  options.pin = args.boolean(5, "pin");
  std::unique_ptr<Engine> engine;
  throwUnless(args.env(), Engine::open(options, &engine));
  return number(args, stateOf(args).engines.add(std::move(engine)));
}

Napi::Value engineClose(const Args& args) {
  reportMemory(args, engineOf(args)->heldBytes(), 0);
  stateOf(args).engines.remove(args.handle(0, "engine"));
  return args.env().Undefined();
}

// bufferAlloc(engine, device, bytes): handle
Napi::Value bufferAlloc(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  const auto device = static_cast<int>(args.integer(1, "device", 0, engine->devices() - 1));
  const int64_t before = engine->heldBytes();
  int32_t handle = 0;
  throwUnless(args.env(), engine->allocate(device, args.bytes(2, "bytes"), &handle));
  reportMemory(args, before, engine->heldBytes());
  return number(args, handle);
}

Napi::Value bufferFree(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  const int64_t before = engine->heldBytes();
  throwUnless(args.env(), engine->freeBuffer(args.handle(1, "buffer")));
  reportMemory(args, before, engine->heldBytes());
  return args.env().Undefined();
}

// bufferWrite(engine, buffer, byteOffset, view)
Napi::Value bufferWrite(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  const int32_t buffer = args.handle(1, "buffer");
  const int64_t offset = args.bytes(2, "byteOffset");
  const ViewBytes view = args.view(3, "source");
  throwUnless(args.env(), engine->write(buffer, offset, view.data, view.size));
  return args.env().Undefined();
}

// bufferRead(engine, buffer, byteOffset, view)
Napi::Value bufferRead(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  const int32_t buffer = args.handle(1, "buffer");
  const int64_t offset = args.bytes(2, "byteOffset");
  const ViewBytes view = args.view(3, "target");
  throwUnless(args.env(), engine->read(buffer, offset, view.data, view.size));
  return args.env().Undefined();
}

// bufferWriteQueued(engine, buffer, byteOffset, view): Promise of an empty Uint8Array
Napi::Value bufferWriteQueued(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  const int32_t buffer = args.handle(1, "buffer");
  const int64_t offset = args.bytes(2, "byteOffset");
  const ViewBytes view = args.view(3, "source");
  return promise(
      args, [&](Engine::Completion done) { return engine->queueWrite(buffer, offset, copyOf(view), std::move(done)); });
}

// bufferReadQueued(engine, buffer, byteOffset, bytes): Promise<Uint8Array>
Napi::Value bufferReadQueued(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  const int32_t buffer = args.handle(1, "buffer");
  const int64_t offset = args.bytes(2, "byteOffset");
  const int64_t bytes = args.bytes(3, "bytes");
  return promise(args,
                 [&](Engine::Completion done) { return engine->queueRead(buffer, offset, bytes, std::move(done)); });
}

// executableLoad(engine, programs, buffers, inputBytes, outputBytes): handle
Napi::Value executableLoad(const Args& args) {
  const auto programs = args.int32Arrays(1, "programs");
  const auto buffers = args.int32Arrays(2, "buffers");
  const int64_t inputBytes = args.bytes(3, "inputBytes"), outputBytes = args.bytes(4, "outputBytes");
  const std::shared_ptr<Engine> engine = engineOf(args);
  int32_t handle = 0;
  throwUnless(args.env(), engine->load(spans(programs), spans(buffers), inputBytes, outputBytes, &handle));
  return number(args, handle);
}

// executableBind(engine, executable, buffers)
Napi::Value executableBind(const Args& args) {
  const int32_t executable = args.handle(1, "executable");
  const auto buffers = args.int32Arrays(2, "buffers");
  throwUnless(args.env(), engineOf(args)->bind(executable, spans(buffers)));
  return args.env().Undefined();
}

Napi::Value executableFree(const Args& args) {
  throwUnless(args.env(), engineOf(args)->freeExecutable(args.handle(1, "executable")));
  return args.env().Undefined();
}

// run(engine, executable, inputs, ticket): Promise<Uint8Array>
Napi::Value run(const Args& args) {
  const int32_t executable = args.handle(1, "executable");
  const auto ticket = static_cast<int32_t>(args.integer(3, "ticket", 0, INT32_MAX));
  const ViewBytes view = args.view(2, "inputs");
  const std::shared_ptr<Engine> engine = engineOf(args);
  return promise(
      args, [&](Engine::Completion done) { return engine->run(executable, copyOf(view), ticket, std::move(done)); });
}

// cancel(engine, ticket, reason): boolean
Napi::Value cancel(const Args& args) {
  const auto ticket = static_cast<int32_t>(args.integer(1, "ticket", 0, INT32_MAX));
  const std::string reason = args.string(2, "reason");
  return Napi::Boolean::New(args.env(), engineOf(args)->cancel(ticket, reason));
}

// abort(engine, reason)
Napi::Value abortRuns(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  engine->abort(args.string(1, "reason"));
  return args.env().Undefined();
}

Napi::Value busy(const Args& args) { return Napi::Boolean::New(args.env(), engineOf(args)->busy()); }

// setProfiling(engine, on)
Napi::Value setProfiling(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  engine->setProfiling(args.boolean(1, "on"));
  return args.env().Undefined();
}

Napi::Value stats(const Args& args) {
  const std::shared_ptr<Engine> engine = engineOf(args);
  return statsObject(args.env(), engine->backend(), engine->stats());
}

// safetensorsOpen(path, followLinks): {file, ...index}
Napi::Value safetensorsOpen(const Args& args) {
  const std::string path = args.string(0, "path");
  Safetensors index;
  throwUnless(args.env(), openSafetensors(path, args.boolean(1, "followLinks"), &index));
  Napi::Object result = safetensorsObject(args.env(), index);
  result["file"] = number(args, stateOf(args).files.add(std::move(index.file)));
  return result;
}

std::shared_ptr<File> fileOf(const Args& args) {
  const int32_t handle = args.handle(0, "file");
  std::shared_ptr<File> file = stateOf(args).files.find(handle);
  if (file == nullptr) {
    throw toError(args.env(),
                  Status(Code::invalidArgument, "file " + std::to_string(handle) + " is closed or unknown"));
  }
  return file;
}

// fileRead(file, byteOffset, view)
Napi::Value fileRead(const Args& args) {
  const std::shared_ptr<File> file = fileOf(args);
  const int64_t offset = args.bytes(1, "byteOffset");
  const ViewBytes view = args.view(2, "target");
  throwUnless(args.env(), file->read(offset, view.data, view.size));
  return args.env().Undefined();
}

Napi::Value fileClose(const Args& args) {
  fileOf(args);
  stateOf(args).files.remove(args.handle(0, "file"));
  return args.env().Undefined();
}

template <Napi::Value (*function)(const Args&, CheckpointState&)>
Napi::Value withCheckpoints(const Args& args) {
  return function(args, stateOf(args).checkpoints);
}
template <Napi::Value (*function)(const Args&, CheckpointState&, Promises&)>
Napi::Value inBackground(const Args& args) {
  return function(args, stateOf(args).checkpoints, stateOf(args).promises);
}
template <Napi::Value (*function)(const Args&, CheckpointState&, Promises&, Engine&)>
Napi::Value onEngine(const Args& args) {
  return function(args, stateOf(args).checkpoints, stateOf(args).promises, *engineOf(args));
}

// Keeps C++ exceptions on this side.
template <Napi::Value (*function)(const Args&)>
Napi::Value guarded(const Napi::CallbackInfo& call) {
  const auto fail = [&](Code code, const char* message) { return toError(call.Env(), Status(code, message)); };
  try {
    return function(Args(call));
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw fail(Code::outOfMemory, "out of host memory");
  } catch (const std::exception& error) {
    throw fail(Code::internal, error.what());
  }
}

template <Napi::Value (*function)(const Args&)>
void add(Napi::Object& exports, const char* name) {
  exports[name] = Napi::Function::New<guarded<function>>(exports.Env(), name);
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  auto state = std::make_unique<State>(env);
  // Added after the thread-safe function was made, so that it runs before that is torn down.
  napi_add_env_cleanup_hook(env, State::cleanUp, state.get());
  env.SetInstanceData(state.release());
  add<info>(exports, "info");
  add<cudaStatus>(exports, "cudaStatus");
  add<cudaLibraries>(exports, "cudaLibraries");
  add<engineOpen>(exports, "engineOpen");
  add<engineClose>(exports, "engineClose");
  add<bufferAlloc>(exports, "bufferAlloc");
  add<bufferFree>(exports, "bufferFree");
  add<bufferWrite>(exports, "bufferWrite");
  add<bufferRead>(exports, "bufferRead");
  add<bufferWriteQueued>(exports, "bufferWriteQueued");
  add<bufferReadQueued>(exports, "bufferReadQueued");
  add<executableLoad>(exports, "executableLoad");
  add<executableBind>(exports, "executableBind");
  add<executableFree>(exports, "executableFree");
  add<run>(exports, "run");
  add<abortRuns>(exports, "abort");
  add<cancel>(exports, "cancel");
  add<busy>(exports, "busy");
  add<setProfiling>(exports, "setProfiling");
  add<stats>(exports, "stats");
  add<safetensorsOpen>(exports, "safetensorsOpen");
  add<fileRead>(exports, "fileRead");
  add<fileClose>(exports, "fileClose");
  add<withCheckpoints<memoryAlloc>>(exports, "memoryAlloc");
  add<inBackground<memoryTouch>>(exports, "memoryTouch");
  add<withCheckpoints<memoryFree>>(exports, "memoryFree");
  add<withCheckpoints<memoryStop>>(exports, "memoryStop");
  add<withCheckpoints<memoryRead>>(exports, "memoryRead");
  add<onEngine<snapshot>>(exports, "snapshot");
  add<onEngine<restore>>(exports, "restore");
  add<inBackground<shardsWrite>>(exports, "shardsWrite");
  add<withCheckpoints<checkpointNew>>(exports, "checkpointNew");
  add<inBackground<checkpointOpen>>(exports, "checkpointOpen");
  add<withCheckpoints<checkpointManifest>>(exports, "checkpointManifest");
  add<inBackground<checkpointRead>>(exports, "checkpointRead");
  add<withCheckpoints<checkpointClose>>(exports, "checkpointClose");
  add<inBackground<folderSteps>>(exports, "folderSteps");
  return exports;
}

NODE_API_MODULE(meshwork, init)

}  // namespace
}  // namespace meshwork
