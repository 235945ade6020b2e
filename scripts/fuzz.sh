#!/usr/bin/env bash
# Fuzzes the readers of manifests and safetensors files under ASan and UBSan: scripts/fuzz.sh [INPUTS] (default: a million
# each). With SAVE=1 the corpus in native/test/fuzz/corpus is replaced by the inputs that reached something.
set -eu
cd "$(dirname "$0")/.."
inputs=${1:-1000000}
out=build-native/fuzz
mkdir -p "$out"
flags=(-std=c++20 -O1 -g1 -Wall -Wextra -Werror -Inative -fsanitize=address,undefined -fno-sanitize-recover=all
  -fno-omit-frame-pointer)
cxx=${CXX:-c++}
for name in json safetensors manifest sha256 file; do
  # Only the readers report their edges.
  "$cxx" "${flags[@]}" -fsanitize-coverage=trace-pc -c "native/io/$name.cc" -o "$out/$name.o"
done
for target in manifest safetensors; do
  "$cxx" "${flags[@]}" -o "$out/fuzz_$target" "native/test/fuzz/fuzz_$target.cc" native/test/fuzz/driver.cc "$out"/*.o
  corpus="native/test/fuzz/corpus/$target"
  save=()
  if [ "${SAVE:-}" = 1 ]; then
    rm -rf "$out/$target"
    mkdir -p "$out/$target"
    save=(--save "$out/$target")
  fi
  echo "== $target"
  ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=0:quarantine_size_mb=8 \
    UBSAN_OPTIONS=print_stacktrace=1 "$out/fuzz_$target" "$inputs" "${save[@]}" "$corpus"
  if [ "${SAVE:-}" = 1 ]; then
    rm -rf "$corpus"
    mkdir -p "$corpus"
    cp "$out/$target"/* "$corpus"
  fi
done
