// Seeded mistakes in the native collectives and the executor. The addon is built anew for each.
import type { Mutant } from "./mutant.ts";

/** All of this file. */
export const nativeMutants: readonly Mutant[] = [
  {
    name: "native: the last rank's values are left out of sums",
    class: "missing reduction",
    file: "native/collective/move.cc",
    find: "for (const Collective& call : calls) sources.push_back(call.in);",
    replace:
      "for (const Collective& call : calls.first(std::max<size_t>(1, calls.size() - 1))) sources.push_back(call.in);",
  },
  {
    name: "native: parts begin where the receiver's own counts say",
    class: "swapped all-to-all count",
    file: "native/collective/move.cc",
    find: "const int64_t splitBegin = sumBefore(theirs.counts, me), joinBegin = sumBefore(mine.joinCounts, r);",
    replace: "const int64_t splitBegin = sumBefore(mine.counts, me), joinBegin = sumBefore(mine.joinCounts, r);",
  },
  {
    name: "native: a scattered part begins as if all were equal",
    class: "wrong offset of a slice",
    file: "native/collective/move.cc",
    find: "const int64_t first = sumBefore(mine.counts, me) * inner;",
    replace: "const int64_t first = mine.counts[me] * me * inner;",
  },
  {
    name: "native: ranks leave a collective before the others have done their shares",
    class: "missed wait",
    file: "native/collective/inprocess.cc",
    find: `      return status;
    }
    return meet(group, rank, me, calls[0]);`,
    replace: `      return status;
    }
    return Status();`,
  },
  {
    name: "native: the newest message is taken first",
    class: "dropped microbatch",
    file: "native/collective/inprocess.cc",
    find: `    posted = queue.front();
    queue.pop_front();`,
    replace: `    posted = queue.back();
    queue.pop_back();`,
  },
];
