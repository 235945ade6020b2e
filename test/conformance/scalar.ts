// Scalar functions of the elementwise ops, in float64 and in 32-bit integers.

/** erf by its series, and by the continued fraction of erfc where that converges fast. */
export function erf(x: number): number {
  const a = Math.abs(x);
  if (a < 3) {
    let term = a;
    let sum = a;
    for (let n = 1; Math.abs(term) > 1e-18 * Math.abs(sum) && n < 200; n++) {
      term *= (-a * a) / n;
      sum += term / (2 * n + 1);
    }
    return (Math.sign(x) * 2 * sum) / Math.sqrt(Math.PI);
  }
  let fraction = 0;
  for (let n = 60; n >= 1; n--) fraction = n / 2 / (a + fraction);
  return Math.sign(x) * (1 - Math.exp(-a * a) / (Math.sqrt(Math.PI) * (a + fraction)));
}

const geluC = Math.sqrt(2 / Math.PI);
const geluA = 0.044715;

function geluTanh(x: number): number {
  return Math.tanh(geluC * (x + geluA * x ** 3));
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

function geluGrad(x: number, dy: number): number {
  const t = geluTanh(x);
  return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * geluC * (1 + 3 * geluA * x * x));
}

function siluGrad(x: number, dy: number): number {
  const s = sigmoid(x);
  return dy * s * (1 + x * (1 - s));
}

/** To the nearest whole number, halves to the even one. */
function roundEven(x: number): number {
  const low = Math.floor(x);
  const rest = x - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

export const floatFunctions = {
  neg: (x: number) => -x,
  abs: Math.abs,
  sign: Math.sign,
  floor: Math.floor,
  ceil: Math.ceil,
  round: roundEven,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  rsqrt: (x: number) => 1 / Math.sqrt(x),
  reciprocal: (x: number) => 1 / x,
  sin: Math.sin,
  cos: Math.cos,
  tanh: Math.tanh,
  erf,
  sigmoid,
  gelu: (x: number) => 0.5 * x * (1 + geluTanh(x)),
  gelu_grad: geluGrad,
  silu: (x: number) => x * sigmoid(x),
  silu_grad: siluGrad,
  not: (x: number) => (x !== 0 ? 0 : 1),
  is_finite: (x: number) => (Number.isFinite(x) ? 1 : 0),
  add: (x: number, y: number) => x + y,
  sub: (x: number, y: number) => x - y,
  mul: (x: number, y: number) => x * y,
  div: (x: number, y: number) => x / y,
  rem: (x: number, y: number) => x % y,
  max: (x: number, y: number) => Math.max(x, y),
  min: (x: number, y: number) => Math.min(x, y),
  pow: (x: number, y: number) => x ** y,
  eq: (x: number, y: number) => (x === y ? 1 : 0),
  ne: (x: number, y: number) => (x !== y ? 1 : 0),
  lt: (x: number, y: number) => (x < y ? 1 : 0),
  le: (x: number, y: number) => (x <= y ? 1 : 0),
  and: (x: number, y: number) => (x !== 0 && y !== 0 ? 1 : 0),
  or: (x: number, y: number) => (x !== 0 || y !== 0 ? 1 : 0),
  select: (c: number, x: number, y: number) => (c !== 0 ? x : y),
};

/** Where 32-bit integers differ: they wrap around, division truncates, and division by zero gives 0. */
export const intFunctions = {
  neg: (x: number) => -x | 0,
  abs: (x: number) => Math.abs(x) | 0,
  add: (x: number, y: number) => (x + y) | 0,
  sub: (x: number, y: number) => (x - y) | 0,
  mul: Math.imul,
  div: (x: number, y: number) => (y === 0 ? 0 : Math.trunc(x / y) | 0),
  rem: (x: number, y: number) => (y === 0 ? 0 : (x % y) | 0),
};
