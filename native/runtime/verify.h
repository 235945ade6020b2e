// Checks that a decoded program stays inside its memory and makes sense to its kernels and collectives.
#pragma once
#include "core/opcodes.h"
#include "core/status.h"
#include "runtime/program.h"

namespace meshwork {

constexpr bool isCollective(Op op) {
  return op == Op::all_reduce || op == Op::all_gather || op == Op::reduce_scatter || op == Op::all_to_all ||
         op == Op::broadcast || op == Op::expert_exchange;
}

Status verifyProgram(const Program& program, const ProgramLimits& limits);

}  // namespace meshwork
