// The proof catches seeded mistakes in action lists and in the order of collectives.
import assert from "node:assert/strict";
import { PlanError } from "../../lib/core/errors.ts";
import { type StageAction, type StageTransfer, pipelineActions } from "../../lib/passes/actions.ts";
import { type CollectiveCall, proveCollectives } from "../../lib/passes/prove-collectives.ts";
import { prove } from "../../lib/passes/prove.ts";
import { gpipe, interleaved, oneFOneB, zeroBubbleH1, zeroBubbleV } from "../../lib/passes/schedules.ts";
import { type Pool, pools, type Slots } from "../../lib/passes/slots.ts";
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
    prove(plan.devices, { microbatches: 4, slots: [3, 2, 1].map((FB) => ({ FB, FW: 0, BW: 0 })) });
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
    plan.devices.forEach((list, device) => {
      list.forEach((run, i) => {
        const next = list[i + 1];
        if (run.kind !== "run" || next?.kind !== "transfer") return;
        const made = next.items.some(
          (t) => t.direction === "send" && t.segment === run.segment && t.microbatch === run.microbatch,
        );
        if (made)
          refuses(swapped(device, i, i + 1), /sends value \d+ of microbatch \d to stage \d before [FB] has made it/);
      });
    });
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
        const folded = ({ slots }: { slots: Slots }): Slots => ({ FB: slots.FB! % 2 });
        if (a.kind === "run") return { ...a, slots: folded(a) };
        if (a.kind !== "transfer") return a;
        return { kind: "transfer", items: a.items.map((i) => ({ ...i, slots: folded(i) })) };
      }),
    );
    refuses(fewer, /FB slot 0 of stage 0 is given to microbatch 2 while microbatch 0 still needs it/, {
      stage: 0,
      slot: 0,
    });
    assert.throws(
      () => prove(plan.devices, { slots: [2, 2, 1].map((FB) => ({ FB, FW: 0, BW: 0 })) }),
      /stage 0 has 2 FB slots, but microbatch 2 is to lie in slot 2/,
    );
    const moved = edited(plan, 0, (l) =>
      l.map((a) => (a.kind === "run" && a.segment === "B" ? { ...a, slots: { FB: a.slots.FB! + 1 } } : a)),
    );
    refuses(moved, /microbatch 0 lies in FB slot 0 of stage 0, not in 1/);
  });

  it("catches a slot reused while a value is on its way", () => {
    const late = edited(plan, 2, (l) => [...l.filter((a) => a.kind !== "wait"), ...l.filter((a) => a.kind === "wait")]);
    refuses(
      late,
      /FB slot 0 of stage 2 is given to microbatch 1 while value 101 of microbatch 0 may still be on its way to stage 1/,
    );
    const grouped = edited(plan, 2, (l) => {
      const [a, wait, b] = l.slice(3, 6);
      assert.ok(a?.kind === "transfer" && wait?.kind === "wait" && b?.kind === "transfer");
      return [...l.slice(0, 3), { kind: "transfer", items: [...b.items, ...a.items] }, wait, ...l.slice(6)];
    });
    refuses(grouped, /FB slot 0 of stage 2 is given to microbatch 1 while/);
  });

  it("catches waits for sends that were not posted", () => {
    refuses(
      edited(sized, 0, (l) => [{ kind: "wait", send: 0 }, ...l]),
      /device 0 waits for its send 0 when it has posted 0/,
    );
  });

  it("catches receives before the sends they wait for on both sides, and names the circle", () => {
    const crossed = pipelineActions(gpipe(2, 1), [
      { value: 0, from: 0, to: 1, segment: "F", needed: "B" },
      { value: 5, from: 1, to: 0, segment: "F", needed: "B" },
    ]);
    prove(crossed.devices);
    const cycle = [
      { stage: 0, peerStage: 1, direction: "receive", value: 5, microbatch: 0 },
      { stage: 1, peerStage: 0, direction: "receive", value: 0, microbatch: 0 },
    ];
    refuses(
      crossed.devices.map((l) => ungrouped(l, "receive")),
      /would wait for ever: stage 0 waits to receive value 5 of microbatch 0 from stage 1; stage 1 waits to receive value 0/,
      { stages: [0, 1], values: [5, 0], cycle },
    );
  });

  it("catches waits that the other side's receive comes after", () => {
    const early = pipelineActions(gpipe(2, 1), chain(2)).devices.map((list) => {
      const waits = list.filter((a) => a.kind === "wait");
      const rest = list.filter((a) => a.kind !== "wait");
      const sent = rest.findIndex((a) => a.kind === "transfer" && a.items.some((i) => i.direction === "send"));
      return [...rest.slice(0, sent + 1), ...waits, ...rest.slice(sent + 1)];
    });
    prove(early);
    const late = edited(sized, 1, (l) => l.map((a, i) => (i === 0 ? l[2]! : i === 2 ? l[0]! : a)));
    assert.throws(() => prove(late), PlanError);
  });

  it("catches messages that would pass each other on their way", () => {
    const two = [
      { value: 0, from: 0, to: 1, segment: "F" as const },
      { value: 1, from: 0, to: 1, segment: "F" as const },
    ];
    const both = pipelineActions(gpipe(2, 1), two);
    prove(both.devices);
    const crossed = edited(both, 1, (l) =>
      l.map((a) => (a.kind === "transfer" ? { ...a, items: [...a.items].reverse() } : a)),
    );
    refuses(crossed, /receives value 0 of microbatch 0 from stage 0 after value 1 .* although stage 0 sends it before/);
  });

  it("catches mistakes in pools of their own and in several stages a device", () => {
    for (const make of [zeroBubbleH1, zeroBubbleV, interleaved(2)]) {
      const schedule = make(2, 4);
      const right = pipelineActions(schedule, chain(schedule.stages));
      prove(right.devices, { microbatches: 4, slots: right.slots });
      for (const pool of pools) {
        const fewer = right.devices.map((list) => list.map((a) => withSlots(a, pool, (slot) => slot % 1)));
        if (right.slots.some((s) => s[pool] > 1))
          assert.throws(() => prove(fewer), /while/, `${schedule.name} ${pool}`);
      }
      right.devices.forEach((list, device) => {
        for (const dropped of list.filter((a) => a.kind === "run")) {
          assert.throws(() => prove(edited(right, device, (l) => l.filter((a) => a !== dropped))), PlanError);
        }
      });
    }
  });
});

/** An action with other slots in a pool. */
function withSlots(action: StageAction, pool: Pool, change: (slot: number) => number): StageAction {
  const slots = (own: Slots): Slots => (own[pool] === undefined ? own : { ...own, [pool]: change(own[pool]) });
  if (action.kind === "run") return { ...action, slots: slots(action.slots) };
  if (action.kind === "wait") return action;
  const item = (i: StageTransfer): StageTransfer => ({ ...i, slots: slots(i.slots) });
  if (action.kind === "transfer") return { kind: "transfer", items: action.items.map(item) };
  return { kind: "handover", send: item(action.send), receive: item(action.receive) };
}

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
