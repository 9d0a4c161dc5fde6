// SHA-256 of bytes (FIPS 180-4), without the browser's own: that one is there in secure contexts only, and is asynchronous. Knows bytes alone.

const PRIMES = [];
for (let n = 2; PRIMES.length < 64; n++) if (PRIMES.every((p) => n % p)) PRIMES.push(n);

/** The first 32 bits of the fraction of a root, exactly: whole-number arithmetic, since floats have too few digits. */
function fraction(n, power) {
  const target = BigInt(n) << BigInt(32 * power);
  let low = 0n;
  let high = 1n << 40n;
  while (high - low > 1n) {
    const middle = (low + high) / 2n;
    if (middle ** BigInt(power) <= target) low = middle;
    else high = middle;
  }
  return Number(low & 0xffffffffn) | 0;
}

const FIRST = Int32Array.from(PRIMES.slice(0, 8), (p) => fraction(p, 2));
const ROUND = Int32Array.from(PRIMES, (p) => fraction(p, 3));

/** The digest of `pieces` (Uint8Array each), one after the other: 64 hex digits. */
export function sha256(...pieces) {
  const state = Int32Array.from(FIRST);
  const words = new Int32Array(64);
  const block = new Uint8Array(64);
  let filled = 0;
  let length = 0;
  const take = (bytes, at) => {
    for (let i = 0; i < 16; i++, at += 4) words[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
    mix(state, words);
  };
  for (const piece of pieces) {
    length += piece.length;
    let at = 0;
    if (filled) {
      at = Math.min(64 - filled, piece.length);
      block.set(piece.subarray(0, at), filled);
      filled += at;
      if (filled < 64) continue;
      take(block, 0);
      filled = 0;
    }
    for (; at + 64 <= piece.length; at += 64) take(piece, at);
    block.set(piece.subarray(at), 0);
    filled = piece.length - at;
  }
  block.fill(0, filled);
  block[filled] = 0x80;
  if (filled >= 56) {
    take(block, 0);
    block.fill(0);
  }
  new DataView(block.buffer).setBigUint64(56, BigInt(length) * 8n);
  take(block, 0);
  return Array.from(state, (x) => (x >>> 0).toString(16).padStart(8, '0')).join('');
}

function mix(state, w) {
  for (let i = 16; i < 64; i++) {
    const x = w[i - 15];
    const y = w[i - 2];
    const s = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
    const t = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
    w[i] = (w[i - 16] + s + w[i - 7] + t) | 0;
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let i = 0; i < 64; i++) {
    const s = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
    const t = (h + s + ((e & f) ^ (~e & g)) + ROUND[i] + w[i]) | 0;
    const r = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
    const u = (r + ((a & b) ^ (a & c) ^ (b & c))) | 0;
    h = g; g = f; f = e; e = (d + t) | 0; d = c; c = b; b = a; a = (t + u) | 0;
  }
  state[0] += a; state[1] += b; state[2] += c; state[3] += d; state[4] += e; state[5] += f; state[6] += g; state[7] += h;
}
