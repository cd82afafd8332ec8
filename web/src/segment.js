// A trained network for whole scans: Segmenter of liverseg/predict.py, slice by slice.
import {beside, copySlice, millilitres, pasteSlice, spacingKnown} from './volume.js'
import {histogram, judgeMask, notHu} from './check.js'
import {enlarger, preparer} from './pixels.js'
import {withoutSpecks} from './post.js'
import {note, rint} from './words.js'

const FIRST_LOOK = 10 // mm from slice to slice
const LIKELY = .2 // probability of liver that is worth a closer look
const SEES_ALL = ['efficientnet_b0'] // encoders whose every answer depends on the whole picture
const NOTHING = .02 // probabilities below it are taken for none
const MORE_MIRRORED = 1.25
const ASK_SIDE = 'the network finds more liver with left and right exchanged; look at it: the orientation is wrong, '
  + 'or the spleen is large and the liver small, or this is a situs inversus'

// The part of the network's square that holds what is inside: [[top, bottom], [left, right]]
export function gridBox(inside, h, w, size, margin = 32, step = 32) {
  const ends = [[Infinity, -1], [Infinity, -1]]
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) if (inside[y*w + x])
    for (const [axis, at] of [y, x].entries()) ends[axis] = [Math.min(ends[axis][0], at), Math.max(ends[axis][1], at)]
  return ends.map(([first, last], axis) => {
    const n = axis ? w : h, [low, high] = last < 0 ? [0, size] : [first*size/n - margin, (last + 1)*size/n + margin]
    return [Math.max(0, Math.floor(low/step)*step), Math.min(size, Math.ceil(high/step)*step)]
  })
}

// The rows and columns of some slices together that a body takes up, seen in every fourth pixel
function bodyBox(vol, zs, size) {
  const [nx, ny] = vol.shape, w = Math.ceil(nx/4), h = Math.ceil(ny/4)
  const slice = new vol.data.constructor(nx*ny), rows = new Float64Array(h), cols = new Float64Array(w)
  for (const z of zs) {
    copySlice(vol, z, slice)
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) if (slice[4*y*nx + 4*x] > -300) { rows[y]++; cols[x]++ }
  }
  const inside = new Uint8Array(w*h)
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++)
    inside[y*w + x] = rows[y]/(zs.length*w) > .01 && cols[x]/(zs.length*h) > .01
  return gridBox(inside, h, w, size, 16)
}

export class Segmenter {
  // `net`: pictures (Float32Array, [n, 3, h, w]) to a promise of scores [n, 2, h, w]; `meta`: what model.json says
  constructor(net, meta) { Object.assign(this, {net, meta}) }

  // Probability of liver of one slice, on the network's square; the network sees only `box`
  async ask(slice, prepare, box) {
    const [[top, bottom], [left, right]] = box, h = bottom - top, w = right - left, {size, temperature = 1} = this.meta
    const scores = await this.net(prepare(slice, box, new Float32Array(3*h*w)), [1, 3, h, w])
    const map = new Float32Array(size*size)
    for (let y = 0, i = 0; y < h; y++) for (let x = 0; x < w; x++, i++)
      map[(top + y)*size + left + x] = 1/(1 + Math.exp((scores[i] - scores[h*w + i])/temperature))
    return map
  }

  // Find the liver. `seen(done, of)` is called after each slice and may throw to stop; may be a promise
  async segment(vol, {thorough = false, seen = () => {}} = {}) {
    const {size} = this.meta, [nx, ny, nz] = vol.shape, found = new Found(vol, size)
    const prepare = preparer(this.meta, ny, nx), slice = new vol.data.constructor(nx*ny)
    const step = spacingKnown(vol) && !thorough ? Math.min(20, Math.max(1, Math.floor(FIRST_LOOK/vol.spacing[2]))) : 1
    const first = []
    for (let z = 0; z < nz; z += step) first.push(z)
    if (first.at(-1) !== nz - 1) first.push(nz - 1)
    const cut = !thorough && !(this.meta.archs ?? [this.meta.arch]).some(a => SEES_ALL.includes(a))
    const whole = [[0, size], [0, size]], body = cut ? bodyBox(vol, first, size) : whole
    const likely = new Uint8Array(nz), liver = new Uint8Array(nx*ny)
    let done = 0, all = first.length
    const show = async (z, box) => {
      const prob = found.add(z, await this.ask(copySlice(vol, z, slice), prepare, box), box)
      await seen(++done, all)
      return prob
    }
    for (const z of first) {
      const prob = await show(z, body)
      if (step > 1) for (let i = 0; i < prob.length; i++) if (prob[i] > LIKELY) { likely[z] = 1; liver[i] = 1 }
    }
    const between = []
    for (let i = 1; i < first.length; i++) if (likely[first[i - 1]] || likely[first[i]])
      for (let z = first[i - 1] + 1; z < first[i]; z++) between.push(z)
    all += between.length
    const near = cut ? gridBox(liver, ny, nx, size).map(([a, b], i) => [Math.max(a, body[i][0]), Math.min(b, body[i][1])]) : body
    for (const z of between) await show(z, near)
    found.mirrored = await this.mirrored(vol, found, prepare)
    found.how = {thorough, slices_looked_at: done, expected_dice: expectedDice(found, this.meta.expected)}
    found.clean()
    return found
  }

  // Times as much liver with left and right exchanged, in some slices; null for next to none, or trained with flips
  async mirrored(vol, found, prepare, most = 12) {
    if (this.meta.flip) return null
    const [nx, ny] = vol.shape, looked = found.looked, n = looked.length
    const places = new Set(Array.from({length: most}, (_, i) => i === most - 1 ? n - 1 : Math.trunc(i*((n - 1)/(most - 1)))))
    const slice = new vol.data.constructor(nx*ny), turned = new vol.data.constructor(nx*ny), {size} = this.meta
    const prob = new Float32Array(nx*ny)
    let there = 0, here = 0
    for (const i of places) {
      copySlice(vol, looked[i], slice)
      for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++) turned[y*nx + x] = slice[y*nx + nx - 1 - x]
      found.enlarge(await this.ask(turned, prepare, [[0, size], [0, size]]), prob)
      for (let k = 0; k < prob.length; k++) there += prob[k] > .5
      here += found.sizes[looked[i]]
    }
    return there < .005*places.size*nx*ny ? null : rint(100*there/Math.max(1, here))/100
  }
}

// What was found in a scan: the network's answers, kept small, and the mask in the scan's own layout
export class Found {
  constructor(vol, size) {
    const [nx, ny, nz] = vol.shape
    Object.assign(this, {vol, size, mask: new Uint8Array(vol.data.length), maps: new Array(nz), sizes: new Float64Array(nz)})
    Object.assign(this, {enlarge: enlarger(size, ny, nx), prob: new Float32Array(nx*ny), bits: new Uint8Array(nx*ny)})
    Object.assign(this, {threshold: .5, own: {prob: 0, inside: 0, size: 0}})
  }
  get looked() { return [...this.maps.keys()].filter(z => this.maps[z]) }

  // Take the network's answer for a slice; its probability on the scan's grid
  add(z, map, box) {
    const prob = this.enlarge(map, this.prob), {own, bits} = this
    let n = 0
    for (let i = 0; i < prob.length; i++) {
      const p = prob[i], inside = p > .5
      bits[i] = inside
      n += inside
      if (p >= NOTHING) { own.prob += p; if (inside) own.inside += p }
    }
    own.size += n
    this.sizes[z] = n
    pasteSlice(beside(this.vol, this.mask), z, bits)
    this.maps[z] = packed(map, box, this.size)
    return prob
  }

  // Clean up: pieces below 5 mL go
  clean() { [this.pieces, this.voxels] = withoutSpecks(beside(this.vol, this.mask), this.vol.spacing) }

  // Make the mask again with another threshold
  retake(threshold) {
    this.threshold = threshold
    const mask = beside(this.vol, this.mask), {size, prob, bits} = this, map = new Float32Array(size*size)
    for (const z of this.looked) {
      this.enlarge(unpacked(this.maps[z], map, size), prob)
      for (let i = 0; i < prob.length; i++) bits[i] = prob[i] > threshold
      pasteSlice(mask, z, bits)
    }
    this.clean()
  }

  // What liverseg predict writes into its JSON, limited to what the page shows
  result() {
    const {vol, mask} = this, known = spacingKnown(vol), notes = [...vol.notes, ...(this.odd ??= notHu(histogram(vol.data)))]
    if ((this.mirrored ?? 0) > MORE_MIRRORED) notes.push(note('mirrored', ASK_SIDE))
    if (this.voxels) notes.push(...judgeMask(vol, mask))
    const warnings = notes.map(n => n.text)
    if (!this.voxels) warnings.push('no liver was found')
    return {scan: vol.name, liver_found: this.voxels > 0, volume_ml: known ? rint(100*millilitres(this.voxels, vol.affine))/100 : null,
      voxels: this.voxels, pieces_before_post: this.pieces, mirrored: this.mirrored, shape: vol.shape,
      spacing_mm: known ? vol.spacing : null, threshold: this.threshold, ...this.how, warnings}
  }
}

// A map's box as multiples of 1/65535, in half the memory
function packed(map, box, size) {
  const [[top, bottom], [left, right]] = box, w = right - left, values = new Uint16Array((bottom - top)*w)
  for (let y = top, i = 0; y < bottom; y++) for (let x = left; x < right; x++) values[i++] = Math.round(65535*map[y*size + x])
  return {box, values}
}

function unpacked({box, values}, map, size) {
  const [[top, bottom], [left, right]] = box
  map.fill(0)
  for (let y = top, i = 0; y < bottom; y++) for (let x = left; x < right; x++) map[y*size + x] = values[i++]/65535
  return map
}

// The Dice that a mask can be expected to have, as liverseg/trust.py; null without a mask or a fit
function expectedDice({own}, fit) {
  if (!own.size || !fit) return null
  const dice = Math.min(1 - 1e-4, Math.max(1e-4, 2*own.inside/(own.prob + own.size)))
  const line = fit.offset + fit.slope*Math.log(dice/(1 - dice))
  return rint(1000/(1 + Math.exp(-line)))/1000
}
