// Checkpoints for JavaScript: memories of host memory, snapshots of buffers, shards written and read, folder steps.
#pragma once
#include <napi.h>

#include <atomic>

#include "addon/args.h"
#include "addon/jobs.h"
#include "addon/promises.h"
#include "io/shard.h"
#include "runtime/engine.h"
#include "runtime/handles.h"

namespace meshwork {

// A checkpoint that a thread opens: to be used when it is open.
struct OpenedCheckpoint {
  enum class Stage { fresh, opening, open };
  std::atomic<Stage> stage{Stage::fresh};
  Checkpoint checkpoint;
};

// What an environment has open of them.
struct CheckpointState {
  Handles<HostMemory> memories;
  Handles<OpenedCheckpoint> checkpoints;
  Jobs jobs;
};

// Each takes its arguments as its comment in checkpoints.cc says.
Napi::Value memoryAlloc(const Args& args, CheckpointState& state);
Napi::Value memoryTouch(const Args& args, CheckpointState& state, Promises& promises);
Napi::Value memoryFree(const Args& args, CheckpointState& state);
Napi::Value memoryStop(const Args& args, CheckpointState& state);
Napi::Value memoryRead(const Args& args, CheckpointState& state);
Napi::Value snapshot(const Args& args, CheckpointState& state, Promises& promises, Engine& engine);
Napi::Value restore(const Args& args, CheckpointState& state, Promises& promises, Engine& engine);
Napi::Value shardsWrite(const Args& args, CheckpointState& state, Promises& promises);
Napi::Value checkpointNew(const Args& args, CheckpointState& state);
Napi::Value checkpointOpen(const Args& args, CheckpointState& state, Promises& promises);
Napi::Value checkpointManifest(const Args& args, CheckpointState& state);
Napi::Value checkpointRead(const Args& args, CheckpointState& state, Promises& promises);
Napi::Value checkpointClose(const Args& args, CheckpointState& state);
Napi::Value folderSteps(const Args& args, CheckpointState& state, Promises& promises);

}  // namespace meshwork
