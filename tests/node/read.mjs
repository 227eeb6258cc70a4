// Prints what the npm package @jax-js/loaders reads from a safetensors file, as JSON: each tensor's dtype, shape and
// values, integers of 64 bits as text.
import { readFileSync } from "node:fs";
import { safetensors } from "@jax-js/loaders";

const { tensors, metadata } = safetensors.parse(new Uint8Array(readFileSync(process.argv[2])));
const told = Object.entries(tensors).map(([name, { dtype, shape, data }]) => {
  return [name, { dtype, shape, values: Array.from(data, (value) => (typeof value === "bigint" ? String(value) : value)) }];
});
console.log(JSON.stringify({ metadata, tensors: Object.fromEntries(told) }));
