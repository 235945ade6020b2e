#!/usr/bin/env bash
# Builds and runs the native tests under ASan + UBSan and under TSan. Arguments go to the test program (a name filter).
set -eu
cd "$(dirname "$0")/.."
for kind in address thread; do
  node scripts/build-native.mjs --sanitize "$kind" ${JOBS:+--jobs "$JOBS"}
  echo "== $kind"
  # Not detect_stack_use_after_return: GCC 12 misaligns 64-byte vectors on its fake stack (GCC bug 110027).
  for tests in meshwork_native_tests cuda_emulator/meshwork_cuda_tests; do
    ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=0 \
      UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS=halt_on_error=1 \
      "build-native/$kind/native/test/$tests" "$@"
  done
done
