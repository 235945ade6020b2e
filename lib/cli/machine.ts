// What `doctor` looks at: processor, memory, GPUs and launchers of this machine.
import { execFile } from "node:child_process";
import { access, constants, readdir, readFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";

/** The processor and memory. */
export interface Machine {
  readonly system: string;
  readonly cpu: string;
  /** Threads this process may use. */
  readonly cores: number;
  readonly memoryBytes: number;
  readonly freeBytes: number;
  /** The limit of a container or control group, where there is one. */
  readonly limitBytes: number | undefined;
  /** SIMD extensions that matter to the kernels, of those the processor has. */
  readonly simd: readonly string[];
}

/** The extensions the CPU backend can gain from, x86 first, then Arm. */
const SIMD = [
  ...["sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"],
  ...["avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"],
  ...["asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "svebf16"],
];

/** Reads the processor's features; empty where the system does not tell. */
export function simdOf(cpuinfo: string): string[] {
  const line = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(cpuinfo)?.[1] ?? "";
  const has = new Set(line.split(/\s+/));
  return SIMD.filter((feature) => has.has(feature));
}

/** Describes this machine. */
export async function readMachine(): Promise<Machine> {
  const limit = process.constrainedMemory();
  const memoryBytes = os.totalmem();
  return {
    system: `${os.type()} ${os.release()} ${os.arch()}`,
    cpu: os.cpus()[0]?.model.trim() || "unknown",
    cores: os.availableParallelism(),
    memoryBytes,
    freeBytes: os.freemem(),
    limitBytes: limit > 0 && limit < memoryBytes ? limit : undefined,
    simd: simdOf(await readText("/proc/cpuinfo")),
  };
}

/** A GPU as nvidia-smi lists it. */
export interface Gpu {
  readonly index: number;
  readonly name: string;
  readonly memoryMiB: number;
  readonly computeCapability: string;
}

/** The NVIDIA driver and its GPUs. */
export interface Gpus {
  /** Version of the kernel driver; undefined where none is loaded. */
  readonly driver: string | undefined;
  /** Whether the machine has an NVIDIA GPU at all, driver or not. */
  readonly present: boolean;
  readonly gpus: readonly Gpu[];
  /** `nvidia-smi topo -m`: how the GPUs are linked; empty for fewer than two. */
  readonly links: string;
}

/** The driver's version in /proc/driver/nvidia/version. */
export function driverOf(text: string): string | undefined {
  return /Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s/.exec(text)?.[1];
}

/** Reads nvidia-smi's list: index, name, MiB, compute capability. */
export function gpusOf(csv: string): Gpu[] {
  return csv.split("\n").flatMap((line) => {
    const [index, name, memory, capability] = line.split(",").map((cell) => cell.trim());
    if (name === undefined || memory === undefined || !/^\d+$/.test(index ?? "")) return [];
    return [{ index: Number(index), name, memoryMiB: Number(memory), computeCapability: capability ?? "unknown" }];
  });
}

/** Describes the GPUs. */
export async function readGpus(): Promise<Gpus> {
  const driver = driverOf(await readText("/proc/driver/nvidia/version"));
  const query = "--query-gpu=index,name,memory.total,compute_cap";
  const gpus = gpusOf(await output("nvidia-smi", [query, "--format=csv,noheader,nounits"]));
  const links = gpus.length > 1 ? (await output("nvidia-smi", ["topo", "-m"])).trim() : "";
  const present = gpus.length > 0 || driver !== undefined || (await hasNvidiaDevice());
  return { driver, present, gpus, links };
}

/** Looks for NVIDIA's display controllers on the PCI bus. */
async function hasNvidiaDevice(): Promise<boolean> {
  for (const device of await matching("/sys/bus/pci/devices", /./)) {
    const [vendor, kind] = await Promise.all([readText(`${device}/vendor`), readText(`${device}/class`)]);
    if (vendor.trim() === "0x10de" && kind.startsWith("0x03")) return true;
  }
  return false;
}

/** Where a program is, searched along PATH. */
export async function findProgram(name: string, env: NodeJS.ProcessEnv): Promise<string | undefined> {
  for (const folder of (env.PATH ?? "").split(path.delimiter)) {
    const file = path.join(folder, name);
    const usable = await access(file, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (folder !== "" && usable) return file;
  }
  return undefined;
}

/** First line that a program prints; empty when it is missing or fails. */
export async function firstLine(program: string, args: readonly string[]): Promise<string> {
  return (await output(program, args)).split("\n")[0]!.trim();
}

function output(program: string, args: readonly string[]): Promise<string> {
  return new Promise((resolve) => {
    execFile(program, [...args], { timeout: 10_000 }, (error, stdout) => resolve(error === null ? stdout : ""));
  });
}

async function readText(file: string): Promise<string> {
  return readFile(file, "utf8").catch(() => "");
}

async function matching(folder: string, pattern: RegExp): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  return names.filter((name) => pattern.test(name)).map((name) => path.join(folder, name));
}
