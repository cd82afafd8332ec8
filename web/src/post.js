// The connected pieces of a mask, found by its runs, so that a volume needs no second copy; and cleaning up.

// {n, sizes, runs}: runs as [start in memory, length, piece] one after another, along the first axis given.
// `full`: neighbours across edges and corners too (26), else across faces (6)
export function pieces({data, shape: [nx, ny, nz], strides: [sx, sy, sz], start = 0}, full = true) {
  const runs = [], parent = [], rowAt = new Int32Array(ny*nz + 1)
  const root = a => { while (parent[a] !== a) { parent[a] = parent[parent[a]]; a = parent[a] } return a }
  const join = (a, b) => { a = root(a); b = root(b); if (a < b) parent[b] = a; else parent[a] = b }
  const near = full ? 1 : 0 // how far beside a run another one may end
  const begins = [], ends = [] // of each run, along x
  const meet = (from, to, row) => { // runs of the row being written against those of an earlier row
    let j = rowAt[row]
    const last = rowAt[row + 1]
    for (let i = from; i < to; i++) {
      while (j < last && ends[j] + near <= begins[i]) j++
      for (let k = j; k < last && begins[k] < ends[i] + near; k++) join(i, k)
    }
  }
  for (let z = 0, row = 0; z < nz; z++) for (let y = 0; y < ny; y++, row++) {
    const first = begins.length, base = start + z*sz + y*sy
    rowAt[row] = first
    for (let x = 0, at = base; x < nx;) {
      while (x < nx && !data[at]) { x++; at += sx }
      if (x === nx) break
      const from = x, here = at
      while (x < nx && data[at]) { x++; at += sx }
      begins.push(from); ends.push(x); parent.push(parent.length)
      runs.push(here, x - from, 0)
    }
    const last = begins.length
    rowAt[row + 1] = last
    if (first === last) continue
    if (y) meet(first, last, row - 1)
    if (!z) continue
    meet(first, last, row - ny)
    if (!full) continue
    if (y) meet(first, last, row - ny - 1)
    if (y < ny - 1) meet(first, last, row - ny + 1)
  }
  const number = new Map(), sizes = []
  for (let i = 0; i < parent.length; i++) {
    const r = root(i)
    if (!number.has(r)) { number.set(r, sizes.length); sizes.push(0) }
    runs[3*i + 2] = number.get(r)
    sizes[number.get(r)] += runs[3*i + 1]
  }
  return {n: sizes.length, sizes, runs}
}

export const SPECK = 5 // mL; smaller pieces go, the largest always stays

// Take specks out of a mask in place; [how many pieces there were, how many voxels stay]
export function withoutSpecks(mask, spacing, ml = SPECK) {
  const {n, sizes, runs} = pieces(mask), step = mask.strides[0]
  const least = ml*1000/(spacing[0]*spacing[1]*spacing[2]), most = sizes.reduce((a, b) => Math.max(a, b), 0)
  const keep = sizes.map(s => s >= least || s === most)
  for (let i = 0; i < runs.length; i += 3) if (!keep[runs[i + 2]])
    for (let k = 0, at = runs[i]; k < runs[i + 1]; k++, at += step) mask.data[at] = 0
  return [n, sizes.reduce((sum, s, i) => sum + (keep[i] ? s : 0), 0)]
}
