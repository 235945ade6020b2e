// The aims: what each figure must reach, and the table of which do.
import { digits, type Row, type Table } from "./report.ts";

interface Aim {
  readonly work: string;
  readonly unit: string;
  /** Whether a larger or a smaller figure is the better one. */
  readonly better: "more" | "less";
  readonly must: number;
  readonly stretch?: number;
  /** The aim is reached, too, where this one is. */
  readonly or?: string;
}

const faster = (work: string, must: number, stretch: number): Aim => {
  return { work: `${work}, PyTorch's time over ours`, unit: "x", better: "more", must, stretch };
};
const share = (work: string, must: number, stretch?: number): Aim => {
  return { work, unit: "x", better: "more", must, ...(stretch === undefined ? {} : { stretch }) };
};
const most = (work: string, unit: string, must: number, stretch?: number): Aim => {
  return { work, unit, better: "less", must, ...(stretch === undefined ? {} : { stretch }) };
};

/** By the name under which a part of the benchmarks gives the figure. */
export const aims = {
  gpt6F32: faster("GPT 6 x 384, 8 x 256 tokens, f32 step", 2.5, 3),
  gpt6Bf16: faster("the same in bf16 (PyTorch: autocast)", 3, 4),
  gpt2F32: faster("GPT-2 124M, 2 x 256 tokens, f32 step", 2.2, 2.7),
  gpt2Bf16: faster("the same in bf16 (PyTorch: autocast)", 3, 4),
  matmulF32: share("matmul f32, of the FMA ceiling", 0.82, 0.9),
  matmulBf16: share("matmul bf16, of the ceiling of AMX (without: of pairs)", 0.5, 0.65),
  matmulOneDnn: share("matmul bf16, of oneDNN's rate, weights packed", 1.1),
  matmulF32OneDnn: share("matmul f32, of the better of oneDNN's and OpenBLAS's rate", 1),
  chain: share("fused chain of 4, 16 M floats, hand-fused loop's time over ours", 0.82, 0.95),
  allReduce: {
    work: "all_reduce in one process, 2 ranks, 64 MiB f32",
    unit: "GB/s",
    better: "more",
    must: 8,
    stretch: 10,
    or: "allReduceShare",
  },
  allReduceShare: share("the same, hand-written sum of two threads' time over ours", 0.8),
  tp2: share("tp=2, a core each, one device with two threads' time over ours", 0.9, 0.97),
  pp2: share("pp=2, 1f1b, the same, of the schedule's limit m / (m + p - 1)", 0.95, 0.98),
  memory: most("peak resident memory of the 124M step, over PyTorch's", "x", 0.7, 0.5),
  overhead: most("JavaScript and dispatch, step of 1000 instructions", "us", 100, 20),
  compiling: most("trace and compile, GPT-2 124M on 8 devices", "s", 1.5, 0.5),
  growth: most("compile, 48 layers on 64 devices, the longest", "s", 20),
  timer: most("10 ms timer late while training", "%", 0.1),
  checkpoints: most("wait for a save, over the copy's own time", "x", 1.5),
  schedules: most("measured timeline of a schedule off the simulated one", "%", 15),
} as const satisfies Record<string, Aim>;

export type AimName = keyof typeof aims;

/** Figures that were measured, or why one could not be. */
export type Figures = Partial<Record<AimName, number | string>>;

/** What a part of the benchmarks gives. */
export interface PartResult {
  readonly tables: readonly Table[];
  readonly figures?: Figures;
}

function reaches({ better }: Aim, figure: number, aim: number): boolean {
  return better === "more" ? figure >= aim : figure <= aim;
}

function verdict(aim: Aim, figure: number, figures: Figures): string {
  if (aim.stretch !== undefined && reaches(aim, figure, aim.stretch)) return "stretch";
  if (reaches(aim, figure, aim.must)) return "yes";
  const other = Object.entries(aims).find(([name]) => name === aim.or);
  const otherFigure = other && figures[other[0] as AimName];
  if (other && typeof otherFigure === "number" && reaches(other[1], otherFigure, other[1].must))
    return "yes, by the next";
  return "NO";
}

/** A row for each aim of which there is a figure or a reason. */
export function aimsTable(figures: Figures): Table {
  const rows = Object.entries<Aim>(aims).flatMap(([name, aim]): Row[] => {
    const figure = figures[name as AimName];
    if (figure === undefined) return [];
    const { work, unit, better, must, stretch = "" } = aim;
    const sign = better === "more" ? "at least" : "at most";
    const known = typeof figure === "number";
    return [
      {
        work,
        figure: known ? digits(figure) : "-",
        unit,
        must: `${sign} ${must}`,
        stretch,
        reached: known ? verdict(aim, figure, figures) : `not measured: ${figure}`,
      },
    ];
  });
  return { title: "Aims", note: "Ratios are medians of what was measured in turns in this run.", rows };
}
