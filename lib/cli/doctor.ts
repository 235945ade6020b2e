// `meshwork doctor`: what of this machine can be used, what not, and the one command that mends it.
import { MeshworkError } from "../core/errors.ts";
import type { CudaLibrary } from "../runtime/addon.ts";
import type { DoctorOptions } from "./doctor-flags.ts";
import { type CliIo, EXIT, type Output } from "./io.ts";
import { findProgram, firstLine, type Gpus, type Machine, readGpus, readMachine } from "./machine.ts";
import { version } from "./version.ts";

/** One thing looked at. */
export interface Finding {
  readonly name: string;
  /** Undefined for facts that are neither good nor bad. */
  readonly ok: boolean | undefined;
  readonly detail: string;
  /** The command that mends it. */
  readonly fix?: string;
}

/** All that was found. */
export interface Diagnosis {
  readonly meshwork: string;
  readonly node: string;
  readonly machine: Machine;
  readonly gpus: Gpus;
  readonly findings: readonly Finding[];
  /** What a user can do here, and what not. */
  readonly works: Readonly<Record<"cpu" | "cuda" | "mpi", boolean>>;
}

/** Prints the diagnosis. Exit code 0 when the CPU backend works, else 1. */
export async function runDoctor(options: DoctorOptions, io: CliIo): Promise<number> {
  const diagnosis = await diagnose(process.env);
  if (options.json) io.stdout.write(`${JSON.stringify(diagnosis)}\n`);
  else print(diagnosis, io.stdout);
  return diagnosis.works.cpu ? EXIT.done : EXIT.failed;
}

/** Looks at everything. */
export async function diagnose(env: NodeJS.ProcessEnv): Promise<Diagnosis> {
  const [machine, gpus] = await Promise.all([readMachine(), readGpus()]);
  const node = checkNode(process.versions.node);
  const addon = await checkAddon();
  const cuda = checkCuda(gpus, addon);
  const mpi = await checkMpi(env);
  const cpu = addon.ok === true && node.ok === true;
  const works = { cpu, cuda: cpu && addon.cudaGpus > 0, mpi: mpi.ok === true };
  const { name, ok, detail, fix } = addon;
  const addonFinding = fix === undefined ? { name, ok, detail } : { name, ok, detail, fix };
  const findings = [node, addonFinding, ...cuda, mpi];
  return { meshwork: await version(), node: process.versions.node, machine, gpus, findings, works };
}

/** Node 20.19 is the oldest that the package supports. */
export function checkNode(installed: string): Finding {
  const [major = 0, minor = 0] = installed.split(".").map(Number);
  const ok = major > 20 || (major === 20 && minor >= 19);
  const detail = `${installed}${ok ? "" : "; 20.19 or newer is needed"}`;
  return ok ? { name: "Node.js", ok, detail } : { name: "Node.js", ok, detail, fix: "npx -y n lts" };
}

interface AddonFinding extends Finding {
  /** GPUs that the CUDA backend can use, and what it says of itself. */
  readonly cudaGpus: number;
  readonly cuda: string;
  readonly libraries: readonly CudaLibrary[];
}

async function checkAddon(): Promise<AddonFinding> {
  const name = "native addon";
  try {
    const native = await import("../runtime/addon.ts");
    const { gpus: cudaGpus, detail: cuda } = native.cudaStatus();
    const detail = Object.entries(native.info()).map(([key, value]) => `${key} ${value}`);
    return { name, ok: true, cuda, cudaGpus, libraries: native.cudaLibraries(), detail: detail.join(", ") };
  } catch (error) {
    const tried = error instanceof MeshworkError && Array.isArray(error.details.tried) ? error.details.tried : [];
    const reasons = tried.length > 0 ? tried : [error instanceof Error ? error.message : String(error)];
    const detail = `does not load: ${reasons.join("; ")}`;
    return { name, ok: false, cuda: "unknown", cudaGpus: 0, libraries: [], detail, fix: "npm run build:native" };
  }
}

const DEFAULT_CUDA_MAJOR = 13;
const INSTALL_DRIVER = "sudo ubuntu-drivers install --gpgpu";

/** The wheels on PyPI that have the libraries; from CUDA 13 on, only NCCL's name still carries the major version. */
const WHEELS: Readonly<Record<string, (cudaMajor: number) => string>> = {
  NCCL: (major) => `nvidia-nccl-cu${major}`,
  cuBLASLt: (major) => (major >= 13 ? "nvidia-cublas" : `nvidia-cublas-cu${major}`),
  NVRTC: (major) => (major >= 13 ? "nvidia-cuda-nvrtc" : `nvidia-cuda-nvrtc-cu${major}`),
};

function checkCuda(gpus: Gpus, addon: AddonFinding): Finding[] {
  const usable = addon.cudaGpus > 0;
  const backend: Finding = {
    name: "CUDA backend",
    ok: usable,
    detail: addon.cuda,
    ...(usable ? {} : { fix: "MESHWORK_CUDA=1 npm run build:native" }),
  };
  const cards: Finding = { name: "GPUs", ok: gpus.gpus.length > 0, detail: describeGpus(gpus) };
  const findings = [cards, checkDriver(gpus), ...addon.libraries.map(libraryFinding(addon.libraries)), backend];
  // Without a GPU in the machine there is nothing to mend.
  return gpus.present ? findings : findings.map(({ name, ok, detail }) => ({ name, ok, detail }));
}

/** A library as a finding; the wheel that mends it is the one for the driver's CUDA version. */
function libraryFinding(libraries: readonly CudaLibrary[]): (library: CudaLibrary) => Finding {
  const driver = libraries.find(({ name }) => WHEELS[name] === undefined)?.version ?? "";
  const major = Number.parseInt(driver.replace("CUDA ", ""), 10) || DEFAULT_CUDA_MAJOR;
  return ({ name, version: found, detail }) => {
    if (found !== "") return { name, ok: true, detail: `${found} (${detail})` };
    const wheel = WHEELS[name]?.(major);
    return { name, ok: false, detail, fix: wheel === undefined ? INSTALL_DRIVER : `pip install ${wheel}` };
  };
}

function checkDriver(gpus: Gpus): Finding {
  const name = "NVIDIA driver";
  if (gpus.driver === undefined) return { name, ok: false, detail: "none is loaded", fix: INSTALL_DRIVER };
  return { name, ok: true, detail: gpus.driver };
}

function describeGpus({ gpus, present }: Gpus): string {
  if (gpus.length === 0) return present ? "in the machine, but the driver lists none" : "no NVIDIA GPU in this machine";
  const text = gpus.map((gpu) => `${gpu.index}: ${gpu.name}, ${gpu.memoryMiB} MiB, compute ${gpu.computeCapability}`);
  return text.join("; ");
}

async function checkMpi(env: NodeJS.ProcessEnv): Promise<Finding> {
  const name = "MPI launcher";
  for (const program of ["mpirun", "mpiexec", "srun"]) {
    const file = await findProgram(program, env);
    if (file !== undefined) return { name, ok: true, detail: `${file} (${await firstLine(file, ["--version"])})` };
  }
  return { name, ok: false, detail: "neither mpirun nor srun was found", fix: "sudo apt-get install -y openmpi-bin" };
}

const GIB = 2 ** 30;

function gib(bytes: number): string {
  return `${(bytes / GIB).toFixed(1)} GiB`;
}

function print(diagnosis: Diagnosis, out: Output): void {
  const { machine, gpus, findings } = diagnosis;
  const limit = machine.limitBytes === undefined ? "" : `, limited to ${gib(machine.limitBytes)}`;
  const facts: Finding[] = [
    { name: "meshwork", ok: undefined, detail: diagnosis.meshwork },
    { name: "system", ok: undefined, detail: machine.system },
    { name: "processor", ok: undefined, detail: `${machine.cpu}, ${machine.cores} threads` },
    { name: "SIMD", ok: undefined, detail: machine.simd.join(" ") || "unknown" },
    { name: "memory", ok: undefined, detail: `${gib(machine.memoryBytes)}, ${gib(machine.freeBytes)} free${limit}` },
  ];
  for (const { name, ok, detail, fix } of [...facts, ...findings]) {
    const mark = ok === undefined ? "   " : ok ? "ok " : "-- ";
    out.write(`${mark}${name.padEnd(20)} ${detail}\n${fix === undefined ? "" : `${" ".repeat(24)}to mend: ${fix}\n`}`);
  }
  if (gpus.links !== "") out.write(`\n${gpus.links}\n`);
  out.write(`\n${verdict(diagnosis)}\n`);
}

function verdict({ works, gpus }: Diagnosis): string {
  if (!works.cpu) return "Nothing works yet: mend Node.js and the native addon first.";
  const why = gpus.present ? "" : ": this machine has no NVIDIA GPU";
  const cuda = works.cuda ? "CUDA devices can be used." : `CUDA devices cannot be used${why}.`;
  const mpi = works.mpi
    ? "Several processes can be launched with MPI."
    : "Without MPI, one process drives all devices.";
  return `The CPU works: any mesh runs on virtual devices. ${cuda} ${mpi}`;
}
