// SHA-256 of bytes as 64 hexadecimal digits; the browser's own is available on https and localhost only.
const firstBits = n => Math.floor((n - Math.floor(n))*2**32)
const primes = []
for (let n = 2; primes.length < 64; n++) if (primes.every(p => n % p)) primes.push(n)
const CONSTANTS = Int32Array.from(primes, p => firstBits(Math.cbrt(p)))

export function sha256(bytes) {
  const state = Int32Array.from(primes.slice(0, 8), p => firstBits(Math.sqrt(p))), words = new Int32Array(64)
  const block = new Uint8Array(64), view = new DataView(block.buffer), turn = (v, n) => v >>> n | v << 32 - n
  const mix = (source, at) => {
    for (let i = 0; i < 16; i++) words[i] = source.getInt32(at + 4*i)
    for (let i = 16; i < 64; i++) {
      const a = words[i - 15], b = words[i - 2]
      words[i] = words[i - 16] + words[i - 7] + (turn(a, 7) ^ turn(a, 18) ^ a >>> 3) + (turn(b, 17) ^ turn(b, 19) ^ b >>> 10)
    }
    let [a, b, c, d, e, f, g, h] = state
    for (let i = 0; i < 64; i++) {
      const one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + (e & f ^ ~e & g) + CONSTANTS[i] + words[i] | 0
      const two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + (a & b ^ a & c ^ b & c) | 0
      h = g; g = f; f = e; e = d + one | 0; d = c; c = b; b = a; a = one + two | 0
    }
    for (const [i, v] of [a, b, c, d, e, f, g, h].entries()) state[i] += v
  }
  const whole = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), full = bytes.length - bytes.length % 64
  for (let at = 0; at < full; at += 64) mix(whole, at)
  block.set(bytes.subarray(full))
  block[bytes.length - full] = 128
  if (bytes.length - full > 55) { mix(view, 0); block.fill(0) }
  view.setUint32(56, Math.floor(bytes.length/2**29))
  view.setUint32(60, bytes.length*8 % 2**32)
  mix(view, 0)
  return [...state].map(v => (v >>> 0).toString(16).padStart(8, '0')).join('')
}
