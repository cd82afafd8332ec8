// What is odd about a scan's values and about a mask on it, in the words of liverseg/check.py.
import {beside, millilitres, spacingKnown} from './volume.js'
import {pieces} from './post.js'
import {general, note, rint, whole} from './words.js'

const LOWEST = -2048 // HU of the histogram's first bin

// The number of voxels at −2048 … 4095 HU, the ends including what lies beyond; and the lowest and highest value
export function histogram(data) {
  const counts = new Float64Array(6144)
  let low = Infinity, high = -Infinity
  for (let i = 0; i < data.length; i++) {
    const v = data[i]
    if (v < low) low = v
    if (v > high) high = v
    counts[Math.min(4095, Math.max(LOWEST, rint(v))) - LOWEST]++
  }
  return {counts, low, high}
}

// Notes if the values do not look like HU
export function notHu({counts, low, high}) {
  const total = counts.reduce((a, b) => a + b, 0)
  const share = (a, b) => counts.subarray(a - LOWEST, b - LOWEST).reduce((x, y) => x + y, 0)/total
  let how
  if (low === high) how = 'the same everywhere'
  else if (counts.at(-1) > .05*total) how = 'far above those of bone and metal'
  else if (high - low <= 2) how = 'as after stretching each scan from its minimum to its maximum'
  else if (low >= 0 && high <= 255) how = 'as in a picture of 8-bit greys'
  else if (share(850, 1300) > .1 && share(-150, -50) < .01) how = 'most of the body near 1000, as HU + 1024 would be'
  else if (low >= 0) how = 'never below 0, so there is neither air nor fat'
  else if (high - low <= 255) how = 'as after normalising'
  else return []
  return [note('not HU', `values are ${general(low)}…${general(high)}, ${how}; these are no Hounsfield units`)]
}

// The smallest box around what is not 0, as [[low, high], …] with the end left out, or null
export function maskBox({data, shape: [nx, ny, nz], strides: [sx, sy, sz], start}) {
  const low = [Infinity, Infinity, Infinity], high = [-1, -1, -1]
  for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++) {
    const base = start + z*sz + y*sy
    for (let x = 0, at = base; x < nx; x++, at += sx) if (data[at]) {
      if (x < low[0]) low[0] = x
      if (x > high[0]) high[0] = x
      if (y < low[1]) low[1] = y
      if (y > high[1]) high[1] = y
      if (z < low[2]) low[2] = z
      if (z > high[2]) high[2] = z
    }
  }
  return high[0] < 0 ? null : low.map((v, i) => [v, high[i] + 1])
}

// A part of a volume: from `low` to `high` in steps, as a slice of a NumPy array
export function part(vol, box, steps = [1, 1, 1]) {
  return {data: vol.data, strides: vol.strides.map((s, i) => s*steps[i]),
    shape: box.map(([low, high], i) => Math.ceil((high - low)/steps[i])),
    start: vol.start + box.reduce((sum, [low], i) => sum + low*vol.strides[i], 0)}
}

// Call `see(value, x, y, z)` for each voxel
export function walk({data, shape: [nx, ny, nz], strides: [sx, sy, sz], start}, see) {
  for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++)
    for (let x = 0, at = start + z*sz + y*sy; x < nx; x++, at += sx) see(data[at], x, y, z)
}

const entire = shape => shape.map(n => [0, n])

// Notes on a mask; `mask` and `vol` are in one layout
export function judgeMask(vol, maskData) {
  const mask = beside(vol, maskData), box = maskBox(mask)
  if (!box) return [note('empty mask', 'the mask is empty')]
  return [...oddForm(vol, mask, box), ...oddHu(vol, mask, box), ...liesWrong(vol, mask, box), ...upsideDown(vol, mask, box)]
}

// The steps that thin the rows and columns of a box around a mask to about four million voxels
function coarser(mask, box) {
  const voxels = box.reduce((n, [low, high]) => n*(high - low), 1), step = Math.ceil((voxels/4e6)**.5)
  const steps = [step, step, 1]
  let any = false
  walk(part(mask, box, steps), v => { any ||= v > 0 })
  return any ? steps : [1, 1, 1]
}

function oddForm(vol, mask, box) {
  const notes = [], [nx, ny, nz] = vol.shape
  const ends = [box[2][0] === 0 && 'first slice', box[2][1] === nz && 'last slice',
    (box[0][0] === 0 || box[0][1] === nx || box[1][0] === 0 || box[1][1] === ny) && 'side'].filter(Boolean)
  if (ends.length)
    notes.push(note('cut off', `the liver touches the scan's ${ends.join(' and ')}, so its volume is a lower bound`))
  let voxels = 0
  walk(part(mask, box), v => { if (v) voxels++ })
  const ml = millilitres(voxels, vol.affine)
  if (spacingKnown(vol) && !(ml >= 500 && ml <= 4000))
    notes.push(note('volume', `the liver has ${whole(ml)} mL; 500 to 4000 mL are expected`))
  const {sizes} = pieces(part(mask, box, coarser(mask, box))), most = sizes.reduce((a, b) => Math.max(a, b), 0)
  const large = sizes.filter(s => s > .05*most).length
  if (large > 1) notes.push(note('pieces', `the mask has ${large} large pieces`))
  return notes
}

function oddHu(vol, mask, box) {
  const steps = coarser(mask, box), inside = part(mask, box, steps), values = part(vol, box, steps), hu = []
  const [sx, sy, sz] = values.strides
  walk(inside, (v, x, y, z) => { if (v) hu.push(values.data[values.start + x*sx + y*sy + z*sz]) })
  const sorted = Float32Array.from(hu).sort(), n = sorted.length
  const middle = n % 2 ? sorted[(n - 1)/2] : (sorted[n/2 - 1] + sorted[n/2])/2
  const share = test => hu.reduce((sum, v) => sum + test(v), 0)/n
  const low = share(v => v < -100) - share(v => v > 2*middle + 100)
  if (!(middle >= -50 && middle <= 300))
    return [note('liver HU', `the median inside the mask is ${whole(middle)} HU; −50 to 300 are expected`)]
  if (low > .02)
    return [note('fat or air', `${whole(100*low)} % of the mask are below −100 HU, as fat and air are; look at it`)]
  return []
}

// The mean index along an axis of the voxels that pass `test`, or null
function centre(vol, axis, test) {
  let n = 0, sum = 0
  walk(vol, (v, ...at) => { if (test(v)) { n++; sum += at[axis] } })
  return n ? sum/n : null
}

function liesWrong(vol, mask, box) {
  const notes = [], [nx, ny] = vol.shape
  const step = [nx, ny].map(n => Math.max(1, Math.floor(n/128))), slab = [[0, nx], [0, ny], box[2]]
  const hu = part(vol, slab, [...step, 1]), isBody = v => v > -300
  const across = centre(hu, 0, isBody), deep = centre(hu, 1, isBody)
  const side = centre(part(mask, slab, [...step, 1]), 0, v => v > 0)
  if (across === null || deep === null || side === null) return []
  const [w, h, d] = hu.shape, edge = [0, 0]
  walk(hu, (v, x) => { if (isBody(v)) { edge[0] += x === 0; edge[1] += x === w - 1 } })
  const cropped = Math.max(...edge)/(h*d) > .2
  if (!cropped && side - across < -.01*w)
    notes.push(note('liver side', `the mask's centre lies ${whole((across - side)*step[0]*vol.spacing[0])} mm to the patient's `
      + 'left; look at it: the orientation is wrong, or the right lobe was removed, or this is a situs inversus'))
  if (!cropped && boneInFront(hu, Math.trunc(across), Math.trunc(deep)) > .7)
    notes.push(note('spine', 'the spine is not behind the liver but in front of it; look at it: '
                    + 'the orientation is wrong, or the patient lay prone and was registered as supine'))
  return notes
}

// The share of the slices with more bone in front of the body's middle than behind it, near the midline
function boneInFront(hu, across, deep) {
  const reach = Math.trunc(.12*hu.shape[0]), front = new Float64Array(hu.shape[2]), back = new Float64Array(hu.shape[2])
  walk(hu, (v, x, y, z) => { if (v > 250 && x >= across - reach && x < across + reach) (y >= deep ? front : back)[z]++ })
  let more = 0, any = 0
  for (let z = 0; z < front.length; z++) { more += front[z] > back[z]; any += front[z] + back[z] > 0 }
  return more/Math.max(1, any)
}

// A mask opened slice by slice with a square of 3×3; what lies outside is 0
function opened(mask, [nx, ny, nz]) {
  const pass = (from, all) => {
    const out = new Uint8Array(from.length)
    for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++) {
      let n = 0
      for (let dy = -1; dy < 2; dy++) for (let dx = -1; dx < 2; dx++)
        if (x + dx >= 0 && x + dx < nx && y + dy >= 0 && y + dy < ny) n += from[(z*ny + y + dy)*nx + x + dx]
      out[(z*ny + y)*nx + x] = all ? n === 9 : n > 0
    }
    return out
  }
  return pass(pass(mask, true), false)
}

// A mask without holes, slice by slice, in place
function filledSlices(mask, [nx, ny, nz]) {
  for (let z = 0; z < nz; z++) {
    const outside = new Uint8Array(nx*ny), queue = [], base = z*nx*ny
    const take = at => { if (!mask[base + at] && !outside[at]) { outside[at] = 1; queue.push(at) } }
    for (let x = 0; x < nx; x++) { take(x); take((ny - 1)*nx + x) }
    for (let y = 0; y < ny; y++) { take(y*nx); take(y*nx + nx - 1) }
    while (queue.length) {
      const at = queue.pop(), x = at % nx
      if (x) take(at - 1)
      if (x < nx - 1) take(at + 1)
      if (at >= nx) take(at - nx)
      if (at < nx*(ny - 1)) take(at + nx)
    }
    for (let at = 0; at < nx*ny; at++) mask[base + at] = outside[at] ? 0 : 1
  }
  return mask
}

const coarse = n => Math.ceil(n/96) // the step at which n voxels become 96 or fewer

// Air like that of lungs, and the inside of the body, both of every ⌈n/96⌉th voxel
export function lungLike(vol) {
  const thin = part(vol, entire(vol.shape), vol.shape.map(coarse)), {shape} = thin, [nx, ny] = shape
  const hu = new Float32Array(shape[0]*shape[1]*shape[2])
  walk(thin, (v, x, y, z) => { hu[(z*ny + y)*nx + x] = v })
  const body = opened(Uint8Array.from(hu, v => v > -300), shape)
  const {n, sizes, runs} = pieces({data: body, shape, strides: [1, nx, nx*ny], start: 0}, false)
  const most = sizes.indexOf(sizes.reduce((a, b) => Math.max(a, b), 0))
  for (let i = 0; n && i < runs.length; i += 3) if (runs[i + 2] !== most) body.fill(0, runs[i], runs[i] + runs[i + 1])
  const inside = filledSlices(body, shape)
  const air = opened(Uint8Array.from(hu, (v, i) => inside[i] && v > -950 && v < -500), shape)
  return {air, inside, shape}
}

function upsideDown(vol, mask, box) {
  const {air, inside, shape: [nx, ny]} = lungLike(vol)
  const middle = (box[2][0] + centre(part(mask, box), 2, v => v > 0))/coarse(vol.shape[2])
  const sum = a => a.reduce((x, y) => x + y, 0), all = sum(air)
  const below = sum(air.subarray(0, nx*ny*Math.ceil(middle)))/Math.max(1, all)
  if (!(all > .01*sum(inside) && below > .75)) return []
  return [note('upside down', `${whole(100*below)} % of the lung lies on the feet side of the liver; `
               + 'look at it: head and feet are exchanged, or this is not the liver')]
}
