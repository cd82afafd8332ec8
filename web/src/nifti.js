// Open a NIfTI file as liverseg/nifti.py does, or say in the same words why it cannot be opened; write a mask onto the scan's grid.
import {Inflate} from './vendor/pako.js'
import {BadInput, general, note, size, tuple} from './words.js'
import {columns, dot, intoRas, lengths, nearestRotation} from './volume.js'

const BLOCK = 2**22 // bytes read at once
export const MOST = 2e9 // bytes that a scan, its mask and the network may take up together
const NETWORK = 2e8 // bytes, of ONNX Runtime with the network in it
const isGz = name => /\.gz$/i.test(name)

const TYPES = {2: ['Uint8', 1], 4: ['Int16', 2], 8: ['Int32', 4], 16: ['Float32', 4], 64: ['Float64', 8], 256: ['Int8', 1],
  512: ['Uint16', 2], 768: ['Uint32', 4], 1024: ['BigInt64', 8], 1280: ['BigUint64', 8]}
const OTHERS = {32: ['complex64', 8], 128: ["[('R', 'u1'), ('G', 'u1'), ('B', 'u1')]", 3], 1536: ['float128', 16],
  1792: ['complex128', 16], 2048: ['complex256', 32],
  2304: ["[('R', 'u1'), ('G', 'u1'), ('B', 'u1'), ('A', 'u1')]", 4]}
const NOTHING = new Set([0, 1, 255])

// The bytes of a file, decompressed if it is a .gz, checksums verified
async function* bytesOf(file, gz) {
  const feed = gz && inflating(file.name)
  for (let at = 0; at < file.size; at += BLOCK) {
    const raw = new Uint8Array(await file.slice(at, at + BLOCK).arrayBuffer())
    if (gz) yield* feed(raw)
    else yield raw
  }
  if (gz) feed.end()
}

// A function that takes a gzip file's bytes, which may have several parts, and returns their contents
function inflating(name) {
  const damaged = () =>
    new BadInput(`${name}: is truncated or damaged, its compressed data ends early; copy or download it again`)
  let part = null, found = []
  const feed = raw => {
    found = []
    while (raw.length) {
      if (!part) {
        const begin = raw.findIndex(v => v)
        if (begin < 0) break
        raw = raw.subarray(begin)
        part = new Inflate({windowBits: 31, chunkSize: 2**20})
        part.onData = piece => found.push(piece)
        part.onEnd = status => { part.failed = status !== 0 }
      }
      part.push(raw, false)
      if (part.failed) throw damaged()
      raw = part.ended ? raw.subarray(part.strm.next_in) : raw.subarray(raw.length)
      if (part.ended) part = null
    }
    return found
  }
  feed.end = () => { if (part) throw damaged() }
  return feed
}

const cannot = (name, why) => new BadInput(`${name}: cannot be read as NIfTI (${why}); give a .nii or .nii.gz file`)

// A file's header as plain values; raises BadInput for one that makes no sense. `kind`: 'gz', 'nii', or 'pair'
export function parseHeader(raw, name, kind) {
  const unknown = kind === 'gz' ? 'Binary block is wrong size' : `Cannot work out file type of "${name}"`
  if (raw.length < 348) throw cannot(name, unknown)
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length)
  const second = [true, false].find(le => view.getInt32(0, le) === 540)
  const v2 = second !== undefined
  if (v2 && raw.length < 540) throw cannot(name, unknown)
  const le = v2 ? second : littleEndian(view)
  const magic = String.fromCharCode(...raw.subarray(v2 ? 4 : 344, v2 ? 8 : 348)).replace(/\0+$/, '')
  if (kind !== 'gz' && !/^(n\+|ni)[12]$/.test(magic)) {
    if (kind === 'pair' && [true, false].some(e => view.getInt32(0, e) === 348))
      throw new BadInput(`${name}: is a Spm2AnalyzeImage, not NIfTI; convert it to .nii.gz first`)
    throw cannot(name, unknown)
  }
  const head = v2 ? secondVersion(view, le) : firstVersion(view, le)
  Object.assign(head, {raw: raw.slice(0, v2 ? 540 : 348), le, v2, magic, lengths: head.pixdim.slice(1, 1 + Math.min(3, head.dim[0]))})
  checkHeader(head, name, kind)
  return head
}

function littleEndian(view) {
  const [little, big] = [true, false].map(le => view.getInt16(40, le))
  if (little === 0) return view.getInt32(0, false) !== 348
  return little >= 1 && little <= 7 || !(big >= 1 && big <= 7)
}

const several = (n, get) => Array.from({length: n}, (_, i) => get(i))

function firstVersion(view, le) {
  const float = at => view.getFloat32(at, le), short = at => view.getInt16(at, le)
  return {dim: several(8, i => short(40 + 2*i)), datatype: short(70), bitpix: short(72),
    pixdim: several(8, i => float(76 + 4*i)), offset: float(108), slope: float(112), inter: float(116),
    units: view.getUint8(123), qform: short(252), sform: short(254), quatern: several(3, i => float(256 + 4*i)),
    shift: several(3, i => float(268 + 4*i)), rows: several(3, r => several(4, c => float(280 + 16*r + 4*c))),
    at: {bitpix: 72, pixdim: 76, offset: 108, slope: 112, show: [124, 128], descrip: 148, qform: 252, magic: 344, datatype: 70}}
}

function secondVersion(view, le) {
  const float = at => view.getFloat64(at, le), long = at => Number(view.getBigInt64(at, le))
  return {dim: several(8, i => long(16 + 8*i)), datatype: view.getInt16(12, le), bitpix: view.getInt16(14, le),
    pixdim: several(8, i => float(104 + 8*i)), offset: long(168), slope: float(176), inter: float(184),
    units: view.getInt32(500, le) & 255, qform: view.getInt32(344, le), sform: view.getInt32(348, le),
    quatern: several(3, i => float(352 + 8*i)), shift: several(3, i => float(376 + 8*i)),
    rows: several(3, r => several(4, c => float(400 + 32*r + 8*c))),
    at: {bitpix: 14, pixdim: 104, offset: 168, slope: 176, show: [192, 200], descrip: 240, qform: 344, magic: 4, datatype: 12}}
}

// Refuse what nibabel refuses, and correct what it corrects
function checkHeader(head, name, kind) {
  const {datatype, magic, offset} = head, smallest = head.v2 ? 544 : 352
  if (NOTHING.has(datatype)) throw cannot(name, `data code ${datatype} not supported`)
  if (!TYPES[datatype] && !OTHERS[datatype]) throw cannot(name, `data code ${datatype} not recognized`)
  const single = head.v2 ? 'n+2' : 'n+1', pair = head.v2 ? 'ni2' : 'ni1'
  if (magic !== single && magic !== pair) throw cannot(name, `magic string '${magic}' is not valid`)
  if (magic === single && offset !== 0 && offset < smallest)
    throw cannot(name, `vox offset ${Math.trunc(offset)} too low for single file nifti1`)
  head.bits = (TYPES[datatype] ?? OTHERS[datatype])[1]*8
  head.pixdim = head.pixdim.map((v, i) => i < 1 || i > 3 ? v : v === 0 ? 1 : Math.abs(v))
  if (Math.abs(head.pixdim[0]) !== 1) head.pixdim[0] = 1
  for (const form of ['qform', 'sform']) if (!(head[form] >= 0 && head[form] <= 5)) head[form] = 0
  if (head.slope === 0 || !Number.isFinite(head.slope)) Object.assign(head, {slope: 1, inter: 0})
  else if (!Number.isFinite(head.inter)) throw cannot(name, `Valid slope but invalid intercept ${general(head.inter)}`)
  const told = head.dim[0] >= 0 && head.dim[0] < 8 ? head.dim[0] : 7
  head.shape = head.dim.slice(1, 1 + told)
  head.affine = bestAffine(head, name)
  if (kind !== 'pair' && offset < (head.v2 ? 540 : 348))
    throw new BadInput(`${name}: says that its voxels begin at byte ${offset}, within its own header; export it again`)
  if (!head.sform && head.lengths.includes(0) && (head.qform || head.lengths.some(Boolean)))
    throw new BadInput(`${name}: says that its voxels have the size ${head.lengths.map(v => general(v)).join('×')} mm; `
                       + 'export it again')
}

function bestAffine(head, name) {
  if (head.sform) return [...head.rows, [0, 0, 0, 1]]
  if (head.qform) try { return fromQuaternion(head) } catch (e) { throw cannot(name, e.message) }
  const zooms = head.pixdim.slice(1, 4), n = [1, 2, 3].map(i => head.dim[i])
  zooms[0] *= -1
  return [0, 1, 2].map(i => [0, 1, 2].map(j => i === j ? zooms[i] : 0).concat(-(n[i] - 1)/2*zooms[i])).concat([[0, 0, 0, 1]])
}

function fromQuaternion({quatern: [b, c, d], pixdim, shift}) {
  let square = 1 - (b*b + c*c + d*d)
  if (Math.abs(square) < 3*2**-23) square = 0
  if (square < 0) {
    const [mantissa, power] = square.toExponential(6).split('e')
    throw new Error(`w2 should be positive, but is ${mantissa}e${power[0]}${power.slice(1).padStart(2, '0')}`)
  }
  const a = Math.sqrt(square), v = [pixdim[1], pixdim[2], pixdim[3]*pixdim[0]]
  const s = 2/(a*a + b*b + c*c + d*d)
  const turn = [[1 - s*(c*c + d*d), s*(b*c - d*a), s*(b*d + c*a)], [s*(b*c + d*a), 1 - s*(b*b + d*d), s*(c*d - b*a)],
    [s*(b*d - c*a), s*(c*d + b*a), 1 - s*(b*b + c*c)]]
  return [...turn.map((row, i) => [...row.map((x, j) => x*v[j]), shift[i]]), [0, 0, 0, 1]]
}

// Drop trailing axes of length one, add a third to a single picture; raises BadInput for anything else
function threeD(shape, name) {
  if (shape.some(n => n < 0))
    throw new BadInput(`${name}: its voxels cannot be read (its shape is ${tuple(shape)}); the file is truncated or damaged, `
                       + 'copy it again')
  if (!shape.length || shape.some(n => n === 0))
    throw new BadInput(`${name}: has no voxels, its shape is ${tuple(shape)}; export it again`)
  const more = shape.slice(3).reduce((a, b) => a*b, 1)
  if (shape.length > 3 && more > 1)
    throw new BadInput(`${name}: has shape ${tuple(shape)}, so it is ${more} volumes, not one; give one phase or time point`)
  if (shape.length < 2) throw new BadInput(`${name}: has shape ${tuple(shape)}, which is not a volume; export it again`)
  return shape.length === 2 ? [...shape, 1] : shape.slice(0, 3)
}

// Bytes that a scan takes here: its voxels, a mask, the network's answers for every slice, and the network
export function memoryFor(voxels, slices, bytes, side = 256) { return voxels*(bytes + 1) + slices*side*side*2 + NETWORK }

// Raise BadInput before anything is read if a scan does not fit
export function checkMemory(shape, bytes, name) {
  const voxels = shape.reduce((a, b) => a*b, 1), need = memoryFor(voxels, Math.max(...shape), bytes)
  if (need > MOST)
    throw new BadInput(`${name}: has ${shape.join('×')} voxels, which need ${size(need)} of memory here, and the limit of this page `
                       + `is ${size(MOST)}; use \`liverseg predict\` on the command line`)
  return need
}

const isWhole = head => [head.slope, head.inter].every(v => Number.isInteger(v) && Math.abs(v) < 2**15)

// Takes the stored numbers as they come and keeps them as int16 where that loses nothing, else as float32
class Voxels {
  constructor(head, count) {
    const [kind, width] = TYPES[head.datatype]
    Object.assign(this, {kind, width, le: head.le, slope: head.slope, inter: head.inter, at: 0, rest: new Uint8Array(0)})
    this.scaled = head.slope !== 1 || head.inter !== 0
    this.data = !kind.startsWith('Float') && isWhole(head) ? new Int16Array(count) : new Float32Array(count)
    this.asIs = kind === 'Int16' && !this.scaled && this.le
  }
  // Take some bytes; those beyond the last voxel are ignored
  take(raw) {
    if (this.rest.length) {
      const joined = new Uint8Array(this.rest.length + raw.length)
      joined.set(this.rest)
      joined.set(raw, this.rest.length)
      raw = joined
    }
    const n = Math.min(Math.floor(raw.length/this.width), this.data.length - this.at)
    if (this.asIs) new Uint8Array(this.data.buffer).set(raw.subarray(0, 2*n), 2*this.at)
    else this.convert(new DataView(raw.buffer, raw.byteOffset, raw.length), n)
    this.at += n
    this.rest = this.at < this.data.length ? raw.slice(n*this.width) : new Uint8Array(0)
  }
  convert(view, n) {
    const get = `get${this.kind}`, {width, le, slope, inter, scaled} = this
    for (let i = 0; i < n; i++) {
      let v = Number(view[get](i*width, le))
      if (this.data instanceof Int16Array) {
        v = v*slope + inter
        if (v < -32768 || v > 32767) this.data = Float32Array.from(this.data)
        this.data[this.at + i] = v
      } else this.data[this.at + i] = scaled ? Math.fround(Math.fround(v)*Math.fround(slope)) + Math.fround(inter) : v
    }
  }
}

// Read a NIfTI file (a File, or a Blob with a name) into canonical orientation; raises BadInput. `image` has the voxels of a
// header alone; `seen` is called with the share of the bytes read
export async function readNifti(file, seen = () => {}, image = null) {
  const {name} = file, gz = !image && isGz(name), kind = image ? 'pair' : gz ? 'gz' : 'nii', source = image ?? file
  if (!file.size) throw cannot(name, gz ? 'it is empty' : `Empty file: '${name}'`)
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer())
  if (gz && !(start[0] === 0x1f && start[1] === 0x8b))
    throw new BadInput(`${name}: is not a gzip file or is damaged (not a gzipped file); copy it again, or name it .nii if it `
                       + 'is not compressed')
  let head, shape, voxels, passed = 0, begin = new Uint8Array(0), need = Infinity
  const open = () => {
    head = parseHeader(begin, name, kind)
    const told = TYPES[head.datatype]
    if (!told) throw new BadInput(`${name}: holds ${OTHERS[head.datatype][0]} values; a CT or a mask holds one number per voxel`)
    shape = threeD(head.shape, name)
    const count = shape.reduce((a, b) => a*b, 1)
    need = head.offset + count*told[1]
    if (image?.missing) throw new BadInput(`${name}: its voxels are in ${image.missing}, which is not there; choose both files`)
    if (!gz && source.size < need) throw tooShort(name, `the header announces ${need} bytes, the file has ${source.size}`)
    if (image && head.offset < 0) throw tooShort(name, 'memory mapped offset must be positive')
    checkMemory(shape, ['Uint8', 'Int8', 'Int16'].includes(told[0]) && isWhole(head) ? 2 : 4, name)
    voxels = new Voxels(head, count)
    if (!image) voxels.take(begin.subarray(head.offset))
  }
  if (image) {
    begin = new Uint8Array(await file.slice(0, 544).arrayBuffer())
    open()
  }
  for await (const raw of bytesOf(source, gz)) {
    if (voxels) voxels.take(passed < head.offset ? raw.subarray(head.offset - passed) : raw)
    else {
      const joined = new Uint8Array(begin.length + raw.length)
      joined.set(begin)
      joined.set(raw, begin.length)
      begin = joined
    }
    passed += raw.length
    if (!voxels && begin.length >= 544) open()
    seen(Math.min(1, passed/need))
  }
  if (!voxels) open()
  if (voxels.at < voxels.data.length) throw tooShort(name, 'buffer is too small for requested array')
  const affine = inMillimetres(head)
  const vol = intoRas(voxels.data, shape, affine, name, headerNotes(head, affine, shape, passed > need))
  return {...vol, head, stored: shape}
}

const tooShort = (name, why) =>
  new BadInput(`${name}: its voxels cannot be read (${why}); the file is truncated or damaged, copy it again`)

const unit = head => ({1: 1000, 3: .001}[head.units & 7] ?? 1)
const inMillimetres = head => head.affine.map((row, i) => i < 3 ? row.map(v => v*unit(head)) : row)

// What is odd about a header's geometry
export function headerNotes(head, affine, shape, longer) {
  const notes = [], told = Boolean(head.sform || head.qform)
  if (longer)
    notes.push(note('longer', 'the file goes on after the voxels that its header announces; the rest was ignored'))
  if (!told) notes.push(note('no form', 'neither qform nor sform is set, so which side is left is a guess'))
  const sizes = lengths(affine), axes = columns(affine).map((c, j) => c.map(v => v/sizes[j]))
  const tilt = Math.max(...axes.flatMap((a, i) => axes.map((b, j) => Math.abs(dot(a, b) - (i === j)))))
  if (tilt <= 2e-3 && head.sform && head.qform) {
    const off = formsApart(head, shape)
    if (off > .1)
      notes.push(note('forms disagree', `qform and sform disagree by up to ${general(off, 3)} mm; the sform was used`))
  }
  if (tilt > 2e-3)
    notes.push(note('sheared', `the axes are ${(Math.acos(tilt)*180/Math.PI).toFixed(1)}° instead of 90° apart, as after a `
                    + 'tilted gantry; slices are kept as they are'))
  if (spacingUnset(affine, shape, told))
    notes.push(note('spacing', 'the voxel size looks unset (1×1×1 mm), so volumes in mL are unknown; give it with --spacing'))
  return notes
}

// The largest distance between qform and sform at a corner of the volume, mm
function formsApart(head, shape) {
  let q
  try { q = fromQuaternion(head) } catch { return Infinity }
  const d = [0, 1, 2].map(i => q[i].map((v, j) => v - head.rows[i][j]))
  let most = 0
  for (let corner = 0; corner < 8; corner++) {
    const at = [0, 1, 2].map(j => corner >> j & 1 ? shape[j] - 1 : 0)
    for (const row of d) {
      const off = unit(head)*Math.abs(dot(row, at) + row[3])
      if (!Number.isFinite(off)) return Infinity
      most = Math.max(most, off)
    }
  }
  return most
}

function spacingUnset(affine, shape, told) {
  const close = (a, b, atol) => Math.abs(a - b) <= atol + 1e-5*Math.abs(b)
  if (affine.every((row, i) => row.every((v, j) => close(Math.abs(v), Number(i === j), 1e-6)))) return true
  return lengths(affine).every(v => close(v, 1, 1e-5)) && (!told || [...shape].sort((a, b) => a - b).at(-2) >= 512)
}

// The header of a volume that comes from DICOM files, as nibabel makes it
export function newHeader(shape, datatype, affine, leans) {
  const raw = new Uint8Array(348), view = new DataView(raw.buffer), float = (at, v) => view.setFloat32(at, v + 0, true) // no −0
  view.setInt32(0, 348, true)
  view.setInt16(40, 3, true)
  for (let i = 0; i < 7; i++) view.setInt16(42 + 2*i, shape[i] ?? 1, true)
  view.setInt16(70, datatype, true)
  view.setInt16(72, TYPES[datatype][1]*8, true)
  const zooms = lengths(affine), {quatern, sign} = quaternion(affine)
  for (let i = 0; i < 8; i++) float(76 + 4*i, i === 0 ? sign : zooms[i - 1] ?? 1)
  float(108, 352)
  float(112, 1)
  raw[123] = 2
  view.setInt16(252, leans ? 0 : 1, true)
  view.setInt16(254, 1, true)
  for (let i = 0; i < 3; i++) {
    float(256 + 4*i, quatern[i])
    float(268 + 4*i, affine[i][3])
    for (let j = 0; j < 4; j++) float(280 + 16*i + 4*j, affine[i][j])
  }
  raw.set([0x6e, 0x2b, 0x31, 0], 344)
  return parseHeader(raw, 'a volume of DICOM files', 'gz')
}

// b, c and d of the rotation in an affine, and the sign of its third axis
function quaternion(affine) {
  const zooms = lengths(affine), cols = columns(affine).map((c, j) => c.map(v => v/zooms[j]))
  const [p, q, r] = cols, det = p[0]*(q[1]*r[2] - q[2]*r[1]) - p[1]*(q[0]*r[2] - q[2]*r[0]) + p[2]*(q[0]*r[1] - q[1]*r[0])
  const sign = det > 0 ? 1 : -1
  cols[2] = cols[2].map(v => v*sign)
  const m = nearestRotation(cols), [xx, yy, zz] = [m[0][0], m[1][1], m[2][2]] // columns first
  const squares = [1 + xx + yy + zz, 1 + xx - yy - zz, 1 - xx + yy - zz, 1 - xx - yy + zz]
  const k = squares.indexOf(Math.max(...squares)), s = 2*Math.sqrt(squares[k])
  const [yz, zx, xy] = [m[1][2] - m[2][1], m[2][0] - m[0][2], m[0][1] - m[1][0]]
  const [YZ, ZX, XY] = [m[1][2] + m[2][1], m[2][0] + m[0][2], m[0][1] + m[1][0]]
  let found = [[s/4, yz/s, zx/s, xy/s], [yz/s, s/4, XY/s, ZX/s], [zx/s, XY/s, s/4, YZ/s], [xy/s, ZX/s, YZ/s, s/4]][k]
  if (found[0] < 0) found = found.map(v => -v)
  return {quatern: found.slice(1), sign}
}

// The bytes of a mask's file: the scan's own header, without scaling, display range and extensions, then one byte per voxel
export function maskFile(head, mask, what = 'mask') {
  const {at, le, v2} = head, raw = new Uint8Array(v2 ? 544 : 352), view = new DataView(raw.buffer)
  raw.set(head.raw)
  view.setInt16(at.datatype, 2, le)
  view.setInt16(at.bitpix, 8, le)
  const float = (place, v) => v2 ? view.setFloat64(place, v, le) : view.setFloat32(place, v, le), step = v2 ? 8 : 4
  for (let i = 0; i < 4; i++) float(at.pixdim + i*step, head.pixdim[i])
  if (v2) view.setBigInt64(at.offset, 544n, le); else view.setFloat32(at.offset, 352, le)
  float(at.slope, 1)
  float(at.slope + step, 0)
  for (const place of at.show) float(place, 0)
  for (const [i, form] of ['qform', 'sform'].entries())
    if (v2) view.setInt32(at.qform + 4*i, head[form], le); else view.setInt16(at.qform + 2*i, head[form], le)
  raw.fill(0, at.descrip, at.descrip + 80)
  raw.set(new TextEncoder().encode(`liverseg ${what}`), at.descrip)
  raw.set([0x6e, 0x2b, v2 ? 0x32 : 0x31, 0], at.magic)
  return new Blob([raw, mask])
}

// Such a file as .nii.gz
export async function gzipped(blob) {
  return new Blob([await new Response(blob.stream().pipeThrough(new CompressionStream('gzip'))).arrayBuffer()],
                  {type: 'application/gzip'})
}
