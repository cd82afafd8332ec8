// From Hounsfield units to what the network sees, bit for bit as liverseg/pixels.py and Pillow do it.
import {rint} from './words.js'

const PRECISION = 22 // bits of Pillow's integer weights

// HU to 0…255 in 32-bit floats, halves to the even number
function grey(hu, low, high) {
  const factor = Math.fround(255/(high - low))
  return rint(Math.fround(Math.fround(Math.min(Math.max(hu, low), high) - low)*factor))
}

// A function from HU to the grey of a window; integers are looked up in a table
export function windowed(low, high) {
  const table = new Uint8Array(65536)
  for (let i = 0; i < 65536; i++) table[i] = grey(i - 32768, low, high)
  return (hu, out) => {
    if (hu instanceof Int16Array) for (let i = 0; i < hu.length; i++) out[i] = table[hu[i] + 32768]
    else for (let i = 0; i < hu.length; i++) out[i] = grey(Math.fround(hu[i]), low, high)
    return out
  }
}

// The pixels, of `n`, that each of `m` new ones is made of, and their weights: Pillow's triangle filter
function triangle(n, m) {
  const scale = n/m, wide = Math.max(scale, 1), most = Math.ceil(wide)*2 + 1
  const first = new Int32Array(m), count = new Int32Array(m), weights = new Float64Array(m*most)
  for (let i = 0; i < m; i++) {
    const centre = (i + .5)*scale
    const from = Math.max(0, Math.trunc(centre - wide + .5))
    const to = Math.min(n, Math.trunc(centre + wide + .5))
    let sum = 0
    for (let j = from; j < to; j++) {
      const w = Math.max(0, 1 - Math.abs((j - centre + .5)*(1/wide)))
      weights[i*most + j - from] = w
      sum += w
    }
    for (let j = 0; j < to - from; j++) if (sum) weights[i*most + j] /= sum
    first[i] = from
    count[i] = to - from
  }
  return {first, count, weights, most}
}

// A function that brings pictures of h×w to another size: antialiased bilinear, greys rounded after each direction
export function resizer(h, w, toH, toW, Kind = Uint8Array) {
  const across = w === toW ? null : triangle(w, toW), down = h === toH ? null : triangle(h, toH)
  const between = new Kind(h*toW), out = new Kind(toH*toW), greys = Kind === Uint8Array
  if (greys) for (const way of [across, down].filter(Boolean))
    way.weights = Int32Array.from(way.weights, v => Math.trunc(v*2**PRECISION + (v < 0 ? -.5 : .5)))
  const half = greys ? 2**(PRECISION - 1) : 0
  const clip = v => greys ? Math.min(255, Math.max(0, v >> PRECISION)) : v
  return picture => {
    let now = picture
    if (across) {
      const {first, count, weights, most} = across
      for (let x = 0; x < toW; x++) for (let y = 0; y < h; y++) {
        let sum = half
        for (let j = 0, at = y*w + first[x], k = x*most; j < count[x]; j++) sum += now[at++]*weights[k++]
        between[y*toW + x] = clip(sum)
      }
      now = between
    }
    if (!down) return now
    const {first, count, weights, most} = down
    for (let y = 0; y < toH; y++) for (let x = 0; x < toW; x++) {
      let sum = half
      for (let j = 0, at = first[y]*toW + x, k = y*most; j < count[y]; j++, at += toW) sum += now[at]*weights[k++]
      out[y*toW + x] = clip(sum)
    }
    return out
  }
}

// One window or three; of two, the first is used again as the third
export function asWindows(windows) {
  const pairs = Array.isArray(windows[0]) ? windows : [windows]
  return pairs.length === 1 ? pairs : [...pairs, pairs[0]].slice(0, 3)
}

// A function from a slice of HU (h, w) to the network's box [[top, bottom], [left, right]] of its square, as 3 normalised
// channels one after another
export function preparer(meta, h, w) {
  const {size, mean, std} = meta, pairs = asWindows(meta.window)
  const normal = (grey, c) => Math.fround(Math.fround(Math.fround(grey/255) - Math.fround(mean[c]))/Math.fround(std[c]))
  const put = (small, c, box, out, valueOf) => {
    const [[top, bottom], [left, right]] = box
    let o = c*(bottom - top)*(right - left)
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) out[o++] = valueOf(small[y*size + x], c)
  }
  if (meta.bits === 16) {
    const resize = resizer(h, w, size, size, Float32Array), hu = new Float32Array(h*w)
    const clipped = (v, [low, high]) => Math.min(255, Math.max(0, Math.fround(Math.fround(v - low)*Math.fround(255/(high - low)))))
    return (slice, box, out) => {
      for (let i = 0; i < hu.length; i++) hu[i] = Math.min(65535, Math.max(0, rint(slice[i]) + 1024)) - 1024
      const small = resize(hu)
      for (let c = 0; c < 3; c++) put(small, c, box, out, (v, k) => normal(clipped(v, pairs[k % pairs.length]), k))
      return out
    }
  }
  const resize = resizer(h, w, size, size), greys = new Uint8Array(h*w)
  const table = [0, 1, 2].map(c => Float32Array.from({length: 256}, (_, v) => normal(v, c)))
  const show = pairs.map(pair => windowed(...pair))
  return (slice, box, out) => {
    let small
    for (let c = 0; c < 3; c++) {
      if (c < pairs.length) small = resize(show[c](slice, greys))
      put(small, c, box, out, (v, k) => table[k][v])
    }
    return out
  }
}

// A function that enlarges a map of size×size to h×w by linear interpolation
export function enlarger(size, h, w) {
  const places = n => {
    const low = new Int32Array(n), high = new Int32Array(n), share = new Float32Array(n)
    for (let i = 0; i < n; i++) {
      const at = Math.max(0, Math.fround(Math.fround(size/n)*(i + .5) - .5))
      low[i] = Math.min(size - 1, Math.floor(at))
      high[i] = Math.min(size - 1, low[i] + 1)
      share[i] = at - low[i]
    }
    return {low, high, share}
  }
  const rows = places(h), cols = places(w)
  return (map, out) => {
    for (let y = 0, o = 0; y < h; y++) {
      const top = rows.low[y]*size, bottom = rows.high[y]*size, b = rows.share[y], a = 1 - b
      for (let x = 0; x < w; x++) {
        const l = cols.low[x], r = cols.high[x], d = cols.share[x], c = 1 - d
        out[o++] = a*(c*map[top + l] + d*map[top + r]) + b*(c*map[bottom + l] + d*map[bottom + r])
      }
    }
    return out
  }
}
