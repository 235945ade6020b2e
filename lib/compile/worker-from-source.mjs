// Starts the worker when meshwork runs from its sources: worker threads do not inherit the loader of TypeScript files.
import { register } from "tsx/esm/api";

register();
await import("./worker.ts");
