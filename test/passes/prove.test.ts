// The proof catches seeded mistakes in action lists and in the order of collectives.
import assert from "node:assert/strict";
import { PlanError } from "../../lib/core/errors.ts";
import { type StageAction, type StageTransfer, pipelineActions } from "../../lib/passes/actions.ts";
import { type CollectiveCall, proveCollectives } from "../../lib/passes/prove-collectives.ts";
import { prove } from "../../lib/passes/prove.ts";
import { gpipe, oneFOneB } from "../../lib/passes/schedule.ts";
import { chain, edited, withoutItems } from "./pipelines.ts";

function refuses(
  actions: readonly (readonly StageAction[])[],
  message: RegExp,
  details: Record<string, unknown> = {},
): void {
  assert.throws(
    () => prove(actions),
    (e: unknown) => {
      assert.ok(e instanceof PlanError, String(e));
      assert.match(e.message, message);
      assert.deepEqual({ ...e.details, ...details }, e.details);
      return true;
    },
  );
}

describe("prove", () => {
  const plan = pipelineActions(oneFOneB(3, 4), chain(3));
  const sized = pipelineActions(gpipe(2, 2), chain(2));
  const is =
    (direction: string, value: number, microbatch: number) =>
    (i: StageTransfer): boolean =>
      i.direction === direction && i.value === value && i.microbatch === microbatch;

  it("accepts what is right", () => {
    prove(plan.devices, { microbatches: 4, slots: [3, 2, 1] });
    prove([]);
  });

  it("catches every dropped receive and every dropped send", () => {
    plan.devices.forEach((list, device) => {
      for (const dropped of list.flatMap((a) => (a.kind === "transfer" ? a.items : []))) {
        assert.throws(() => prove(edited(plan, device, (l) => withoutItems(l, (i) => i === dropped))), PlanError);
      }
    });
    const missing = edited(plan, 1, (l) => withoutItems(l, is("receive", 0, 3)));
    refuses(missing, /stage 0 sends value 0 of microbatch 3 to stage 1 which never receives it/, {
      value: 0,
      stage: 0,
      peerStage: 1,
    });
  });

  it("catches every dropped run and every dropped wait", () => {
    plan.devices.forEach((list, device) => {
      for (const dropped of list.filter((a) => a.kind !== "transfer")) {
        assert.throws(() => prove(edited(plan, device, (l) => l.filter((a) => a !== dropped))), PlanError);
      }
    });
  });

  it("catches a missing microbatch", () => {
    const last = edited(plan, 1, (l) =>
      withoutItems(l, (i) => i.microbatch === 3).filter((a) => a.kind !== "run" || a.microbatch !== 3),
    );
    refuses(last, /stage 1 never runs F of microbatch 3/, { microbatch: 3 });
    assert.throws(() => prove(plan.devices, { microbatches: 5 }), /stage 0 never runs F of microbatch 4/);
  });

  it("catches runs and transfers in the wrong order", () => {
    const swapped = (device: number, i: number, j: number): StageAction[][] =>
      edited(plan, device, (l) => l.map((a, k) => (k === i ? l[j]! : k === j ? l[i]! : a)));
    refuses(swapped(0, 0, 1), /stage 0 sends value 0 of microbatch 0 to stage 1 before F has made it/);
    refuses(swapped(1, 0, 1), /stage 1 receives value 0 of microbatch 0 from stage 0 after F needed it/);
    const runs = plan.devices[0]!.flatMap((a, i) => (a.kind === "run" && a.segment === "B" ? [i] : []));
    refuses(swapped(0, runs[0]!, runs[1]!), /stage 0 runs B of microbatch 0 after that of microbatch 1/);
  });

  it("catches sends and receives of a value that meet in different orders", () => {
    const items = { kind: "transfer", items: [] as StageTransfer[] } as const;
    const gathered = edited(sized, 1, (list) => {
      items.items.push(...list.flatMap((a) => (a.kind === "transfer" ? a.items : [])).filter((i) => i.value === 0));
      return [{ ...items, items: [...items.items].reverse() }, ...withoutItems(list, (i) => i.value === 0)];
    });
    refuses(gathered, /stage 0 sends value 0 of microbatch 0 when stage 1 expects microbatch 1/, {
      value: 0,
      stages: [0, 1],
    });
  });

  it("catches a slot that is overwritten while it is needed", () => {
    const fewer = edited(plan, 0, (list) =>
      list.map((a): StageAction => {
        if (a.kind === "wait") return a;
        if (a.kind === "run") return { ...a, slot: a.slot % 2 };
        return { kind: "transfer", items: a.items.map((i) => ({ ...i, slot: i.slot % 2 })) };
      }),
    );
    refuses(fewer, /slot 0 of stage 0 is given to microbatch 2 while microbatch 0 still needs it/, {
      stage: 0,
      slot: 0,
    });
    assert.throws(
      () => prove(plan.devices, { slots: [2, 2, 1] }),
      /stage 0 has 2 slots, but microbatch 2 is to lie in slot 2/,
    );
    const moved = edited(plan, 0, (l) =>
      l.map((a) => (a.kind === "run" && a.segment === "B" ? { ...a, slot: a.slot + 1 } : a)),
    );
    refuses(moved, /microbatch 0 lies in slot 0 of stage 0, not in 1/);
  });

  it("catches a slot reused while a value is on its way", () => {
    const late = edited(plan, 2, (l) => [...l.filter((a) => a.kind !== "wait"), ...l.filter((a) => a.kind === "wait")]);
    refuses(
      late,
      /slot 0 of stage 2 is given to microbatch 1 while value 101 of microbatch 0 may still be on its way to stage 1/,
    );
    const grouped = edited(plan, 2, (l) => {
      const [a, wait, b] = l.slice(3, 6);
      assert.ok(a?.kind === "transfer" && wait?.kind === "wait" && b?.kind === "transfer");
      return [...l.slice(0, 3), { kind: "transfer", items: [...b.items, ...a.items] }, wait, ...l.slice(6)];
    });
    refuses(grouped, /slot 0 of stage 2 is given to microbatch 1 while/);
  });

  it("catches waits for sends that were not posted", () => {
    refuses(
      edited(sized, 0, (l) => [{ kind: "wait", send: 0 }, ...l]),
      /device 0 waits for its send 0 when it has posted 0/,
    );
  });

  it("catches opposing sends that are not grouped, and names the circle", () => {
    const crossed = pipelineActions(gpipe(2, 1), [
      { value: 0, from: 0, to: 1, segment: "F", needed: "B" },
      { value: 5, from: 1, to: 0, segment: "F", needed: "B" },
    ]);
    prove(crossed.devices);
    assert.deepEqual(
      crossed.devices.map((l) => l.length),
      [4, 4],
    );
    const cycle = [
      { stage: 0, peerStage: 1, direction: "send", value: 0, microbatch: 0 },
      { stage: 1, peerStage: 0, direction: "send", value: 5, microbatch: 0 },
    ];
    refuses(
      crossed.devices.map((l) => ungrouped(l, "send")),
      /would wait for ever: stage 0 waits to send value 0 of microbatch 0 to stage 1; stage 1 waits to send value 5/,
      { stages: [0, 1], values: [0, 5], cycle },
    );
    const receivesFirst = pipelineActions(gpipe(2, 1), chain(2)).devices.map((l) => ungrouped(l, "receive"));
    refuses(receivesFirst, /stage 0 waits to receive value 100 .*; stage 1 waits to receive value 0 /);
  });
});

/** Every item of a transfer by itself, those of one direction first. */
function ungrouped(list: readonly StageAction[], first: "send" | "receive"): StageAction[] {
  const single = (item: StageTransfer): StageAction => ({ kind: "transfer", items: [item] });
  return list.flatMap((a): StageAction[] => {
    if (a.kind !== "transfer") return [a];
    const is = (i: StageTransfer): boolean => i.direction === first;
    return [...a.items.filter(is), ...a.items.filter((i) => !is(i))].map(single);
  });
}

describe("proveCollectives", () => {
  const call = (group: number[], label: string, more: Partial<CollectiveCall> = {}): CollectiveCall => ({
    group,
    kind: "all_reduce",
    count: 8,
    dtype: "f32",
    label,
    ...more,
  });
  const a = call([0, 1], "a");

  it("accepts matching orders, also of groups that cross", () => {
    proveCollectives([]);
    proveCollectives([[a], [a], []]);
    const [rows, columns] = [
      [call([0, 1], "x"), call([2, 3], "y")],
      [call([0, 2], "u"), call([1, 3], "v")],
    ];
    proveCollectives([
      [rows[0]!, columns[0]!],
      [rows[0]!, columns[1]!],
      [rows[1]!, columns[0]!],
      [rows[1]!, columns[1]!],
    ]);
  });

  const wrong: [string, RegExp, Record<string, unknown>, CollectiveCall[][]][] = [
    [
      "another kind",
      /rank 1 calls all_gather "b" .* the kind is all_gather, not all_reduce/,
      { rank: 1, label: "b", differs: "kind" },
      [[a], [call([0, 1], "b", { kind: "all_gather" })]],
    ],
    [
      "another count",
      /the count is 9, not 8/,
      { rank: 1, label: "b", differs: "count" },
      [[a], [call([0, 1], "b", { count: 9 })]],
    ],
    [
      "another dtype",
      /the dtype is bf16, not f32/,
      { rank: 1, label: "b", differs: "dtype" },
      [[a], [call([0, 1], "b", { dtype: "bf16" })]],
    ],
    [
      "a call that is missing",
      /rank 0 calls all_reduce "b" .*, but rank 1 never does/,
      { rank: 1, label: "b" },
      [[a, call([0, 1], "b")], [a]],
    ],
    [
      "a call too many",
      /rank 1 calls all_reduce "b" .*, but rank 0 never does/,
      { rank: 0, label: "b" },
      [[a], [a, call([0, 1], "b")]],
    ],
    ["a rank outside its group", /rank 2 calls .* of which it is not a member/, { rank: 2 }, [[a], [a], [a]]],
    ["a rank that is not there", /there is no rank 7/, { rank: 0 }, [[call([0, 7], "a")]]],
    ["a rank named twice", /names a rank twice/, { rank: 0 }, [[call([0, 0], "a")]]],
    [
      "a circle of groups",
      /wait for ever: rank 0 waits in all_reduce "a" .* for rank 1; rank 1 waits in all_reduce "b" .* for rank 2; rank 2 waits in .*"c".* for rank 0/,
      { ranks: [0, 1, 2], labels: ["a", "b", "c"] },
      [
        [a, call([2, 0], "c")],
        [call([1, 2], "b"), a],
        [call([2, 0], "c"), call([1, 2], "b")],
      ],
    ],
  ];
  for (const [what, message, details, perRank] of wrong) {
    it(`refuses ${what}`, () => {
      assert.throws(
        () => proveCollectives(perRank),
        (e: unknown) => {
          assert.ok(e instanceof PlanError, String(e));
          assert.match(e.message, message);
          assert.deepEqual({ ...e.details, ...details }, e.details);
          return true;
        },
      );
    });
  }
});
