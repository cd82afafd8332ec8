// One orientation for every scan. The voxels stay where they are; `strides` and `start` say where RAS index (x, y, z) is.
import {BadInput, general, note} from './words.js'

export const AIR = -1024 // HU that stands for what no scanner measured
const PADDING = -1100 // HU; whatever is lower was never measured

export const columns = m => [0, 1, 2].map(j => [0, 1, 2].map(i => m[i][j]))
export const lengths = affine => columns(affine).map(c => Math.hypot(...c))
export const dot = (a, b) => a[0]*b[0] + a[1]*b[1] + a[2]*b[2]
export const cross = (a, b) => [a[1]*b[2] - a[2]*b[1], a[2]*b[0] - a[0]*b[2], a[0]*b[1] - a[1]*b[0]]
export const determinant = affine => { const [a, b, c] = columns(affine); return dot(a, cross(b, c)) }

// The rotation that is nearest to a 3×3 matrix, given and returned as columns: Newton's iteration for the polar factor
export function nearestRotation(cols) {
  for (let i = 0; i < 60; i++) {
    const [a, b, c] = cols, det = dot(a, cross(b, c))
    const inverse = [cross(b, c), cross(c, a), cross(a, b)] // transposed, times the determinant
    const next = cols.map((col, j) => col.map((v, k) => (v + inverse[j][k]/det)/2))
    const moved = Math.max(...next.flatMap((col, j) => col.map((v, k) => Math.abs(v - cols[j][k]))))
    cols = next
    if (moved < 1e-15) break
  }
  return cols
}

// For each axis of the file: [axis of RAS, 1 or -1], as nibabel's io_orientation; null where axes cannot be told
export function orientation(affine) {
  const sizes = lengths(affine)
  const rotation = nearestRotation(columns(affine).map((c, j) => c.map(v => v/(sizes[j] || 1))))
  if (!rotation.flat().every(Number.isFinite)) return null
  const strongest = rotation.map(c => Math.max(...c.map(v => v*v)))
  const found = [null, null, null], taken = new Set()
  for (const j of [0, 1, 2].sort((a, b) => strongest[b] - strongest[a] || a - b)) {
    const free = [0, 1, 2].filter(i => !taken.has(i))
    const best = free.reduce((a, b) => Math.abs(rotation[j][b]) > Math.abs(rotation[j][a]) ? b : a)
    if (Math.abs(rotation[j][best]) < 1e-8) return null
    found[j] = [best, rotation[j][best] < 0 ? -1 : 1]
    taken.add(best)
  }
  return found
}

// A volume in RAS order, of voxels that are stored with the file's first axis fastest
export function asRas(data, stored, affine, ornt) {
  const shape = [], strides = [], ras = affine.map(row => [0, 0, 0, row[3]])
  let start = 0, step = 1
  for (let i = 0; i < 3; i++) {
    const [o, flip] = ornt[i], n = stored[i]
    shape[o] = n
    strides[o] = flip*step
    for (let k = 0; k < 4; k++) {
      ras[k][o] = flip*affine[k][i]
      if (flip < 0) ras[k][3] += (n - 1)*affine[k][i]
    }
    if (flip < 0) start += (n - 1)*step
    step *= n
  }
  return {data, shape, strides, start, affine: ras, spacing: lengths(ras), notes: []}
}

// The same place in another array of the same layout, such as a mask
export const beside = (vol, data) => ({...vol, data})

// Copy the axial slice z into `out`: the front on top, the patient's right on the left
export function copySlice(vol, z, out) {
  const {data, shape: [nx, ny], strides: [sx, sy, sz], start} = vol
  let o = 0
  for (let y = ny - 1; y >= 0; y--) {
    let at = start + z*sz + y*sy + (nx - 1)*sx
    for (let x = 0; x < nx; x++, at -= sx) out[o++] = data[at]
  }
  return out
}

// Put such a slice back
export function pasteSlice(vol, z, from) {
  const {data, shape: [nx, ny], strides: [sx, sy, sz], start} = vol
  let o = 0
  for (let y = ny - 1; y >= 0; y--) {
    let at = start + z*sz + y*sy + (nx - 1)*sx
    for (let x = 0; x < nx; x++, at -= sx) data[at] = from[o++]
  }
}

// A plane across `axis` at index k for a picture: head or front up, the patient's right on the left; for axis 0 front left
export function copyPlane(vol, axis, k, out) {
  const {data, shape, strides, start} = vol
  const [across, up] = axis === 0 ? [1, 2] : axis === 1 ? [0, 2] : [0, 1]
  const w = shape[across], h = shape[up]
  out ??= new data.constructor(w*h)
  for (let r = 0, o = 0; r < h; r++)
    for (let c = 0; c < w; c++)
      out[o++] = data[start + k*strides[axis] + (h - 1 - r)*strides[up] + (w - 1 - c)*strides[across]]
  return {data: out, width: w, height: h}
}

// Fill NaN and infinity that are connected to the border; the number filled. Raises BadInput if there are others
export function fillOutside(data, stored, name, fill = AIR) {
  if (!(data instanceof Float32Array)) return 0
  const [ni, nj, nk] = stored, bad = at => !Number.isFinite(data[at])
  let left = 0
  for (let at = 0; at < data.length; at++) if (bad(at)) left++
  if (!left) return 0
  const queue = []
  let n = 0
  const take = at => { if (bad(at)) { data[at] = fill; queue.push(at); n++ } }
  for (let k = 0; k < nk; k++) for (let j = 0; j < nj; j++) {
    const row = (k*nj + j)*ni
    if (k && j && k < nk - 1 && j < nj - 1) { take(row); take(row + ni - 1) }
    else for (let i = 0; i < ni; i++) take(row + i)
  }
  while (queue.length) {
    const at = queue.pop(), i = at % ni, j = Math.floor(at/ni) % nj, k = Math.floor(at/(ni*nj))
    if (i) take(at - 1)
    if (i < ni - 1) take(at + 1)
    if (j) take(at - ni)
    if (j < nj - 1) take(at + ni)
    if (k) take(at - ni*nj)
    if (k < nk - 1) take(at + ni*nj)
  }
  if (n < left)
    throw new BadInput(`${name}: ${left - n} voxels inside the field of view are NaN or infinite; repair or export it again`)
  return n
}

// Fill what lies far below air; [how many voxels, the lowest value before]
export function fillPadding(data) {
  let low = Infinity, n = 0
  for (let i = 0; i < data.length; i++) if (data[i] < low) low = data[i]
  if (low >= PADDING) return [0, low]
  for (let i = 0; i < data.length; i++) if (data[i] < PADDING) { data[i] = AIR; n++ }
  return [n, low]
}

// What as_volume in liverseg/nifti.py does once there are voxels and an affine in mm
export function intoRas(data, stored, affine, name, notes) {
  const ornt = orientation(affine)
  const all = affine.flat()
  if (!all.every(Number.isFinite) || Math.max(...all.map(Math.abs)) >= 1e6
      || !(Math.abs(determinant(affine)) > 1e-9) || !ornt)
    throw new BadInput(`${name}: its affine maps no volume (a zero or non-finite axis), so left and right are unknown; `
                       + 'export it again')
  const found = [...notes], filled = fillOutside(data, stored, name)
  if (filled) found.push(note('not finite', `${filled} NaN or infinite voxels at the border were filled with air`))
  const [padded, low] = fillPadding(data)
  if (padded && (low < 1.5*AIR || padded > 1e-3*data.length))
    found.push(note('padding', `${padded} voxels of padding (down to ${general(low)}) were filled with air`))
  return {...asRas(data, stored, affine, ornt), notes: found, name}
}

// Voxel count times voxel size
export const millilitres = (voxels, affine) => voxels*Math.abs(determinant(affine))/1000

export const spacingKnown = vol => !vol.notes.some(n => n.code === 'spacing')
