// The check of the random kernel: a key of three words, two attribute words per dim, and the indices of dims where they
// are said to be given.
#include "backend/checks/random.h"

#include "backend/checks/check.h"

namespace meshwork {

Status checkRandom(const Call& call) {
  MESHWORK_TRY(checkCounts(call, Op::random));
  const Operand &key = call.in[0], &y = call.out[0];
  MESHWORK_TRY(checkRank("random: key", key, 1));
  MESHWORK_TRY(checkDType("random: key", key, DType::i32));
  MESHWORK_TRY(checkDim("random: key", key, 0, 3, "seed low, seed high, step"));
  MESHWORK_TRY(checkNoRepeats("random: y", y));
  const int32_t kind = call.attrs[attr::random::kind];
  if (kind < 0 || kind > 2) return refuse("random: kind is " + std::to_string(kind) + ", expected 0, 1 or 2");
  if (kind == 0) {
    MESHWORK_TRY(checkDType("random: y", y, DType::i32));
  } else {
    MESHWORK_TRY(checkFloatType("random: y", y));
  }
  const int32_t indexed = call.attrs[attr::random::indexed];
  if (indexed < 0 || indexed >> y.view->rank != 0) {
    return refuse("random: indexed is " + std::to_string(indexed) + ", which names dims that y has not");
  }
  int next = 1;
  for (int d = 0; d < y.view->rank; ++d) {
    if ((indexed >> d & 1) == 0) continue;
    if (next >= call.inputs) return refuse("random: too few inputs for the dims of indexed");
    const Operand& indices = call.in[next++];
    MESHWORK_TRY(checkRank("random: indices", indices, 1));
    MESHWORK_TRY(checkDType("random: indices", indices, DType::i32));
    MESHWORK_TRY(checkDim("random: indices", indices, 0, y.dim(d), "the dim they belong to"));
  }
  if (next != call.inputs) return refuse("random: more inputs than dims of indexed");
  if (call.attrCount != attr::random::count_ + 2 * y.view->rank) {
    return refuse("random has " + std::to_string(call.attrCount) +
                  " attribute words, expected two per dim of y after three");
  }
  for (int d = 0; d < y.view->rank; ++d) {
    const int32_t* words = call.attrs + attr::random::count_ + 2 * d;
    if (words[0] < -1 || words[0] >= call.tableCount) {
      return refuse("random: dim " + std::to_string(d) + " starts at table word " + std::to_string(words[0]) + " of " +
                    std::to_string(call.tableCount));
    }
    if (words[1] < 0) return refuse("random: dim " + std::to_string(d) + " has a negative size");
  }
  return {};
}

}  // namespace meshwork
