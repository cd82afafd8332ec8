// A folder of DICOM files as one volume, or why that cannot be done: liverseg/dicom.py and dicom_files.py, in the same words.
import {BadInput, general, note, rint, size} from './words.js'
import {AIR, cross, dot, intoRas} from './volume.js'
import {Entry, byName, filesBelow, pathOf} from './archive.js'
import {MOST, checkMemory, headerNotes, newHeader} from './nifti.js'
import {Header, PIXELS, mayBeDicom, parseDicom, saysDicom} from './dicomfile.js'
import {SYNTAXES, decoded, framesIn} from './packed.js'
import {sha256} from './sha256.js'

const T = {imageType: 0x80008, frameType: 0x89007, sopClass: 0x80016, mediaClass: 0x20002, modality: 0x80060, acquired: 0x80032,
  thickness: 0x180050, between: 0x180088, echo: 0x180086, kernel: 0x181210, series: 0x20000e, acquisition: 0x200012, frameAcquisition: 0x209156, kvp: 0x180060,
  instance: 0x200013, position: 0x200032, orientation: 0x200037, temporal: 0x200100, temporalIndex: 0x209128, stack: 0x209056,
  samples: 0x280002, photometric: 0x280004, frames: 0x280008, rows: 0x280010, columns: 0x280011, spacing: 0x280030,
  allocated: 0x280100, stored: 0x280101, highBit: 0x280102, signed: 0x280103, padding: 0x280120, paddingLimit: 0x280121,
  intercept: 0x281052, slope: 0x281053, shared: 0x52009229, perFrame: 0x52009230}
const PHASE_TAGS = [['AcquisitionNumber', T.acquisition], ['FrameAcquisitionNumber', T.frameAcquisition],
  ['TemporalPositionIdentifier', T.temporal],
  ['TemporalPositionIndex', T.temporalIndex], ['StackID', T.stack], ['EchoNumbers', T.echo], ['ConvolutionKernel', T.kernel],
  ['ImageType', T.imageType], ['FrameType', T.frameType], ['KVP', T.kvp], ['AcquisitionTime', T.acquired]] // what may separate two scans of one series
const NUMBERS = new Set([T.temporalIndex, T.frameAcquisition]) // those of them that are not text
const REFORMAT = /MPR|MIP|MINIP|REFORMAT|PROJECTION/
const CT = ['1.2.840.10008.5.1.4.1.1.2', '1.2.840.10008.5.1.4.1.1.2.1'], VOXELS = 2**30, SAME = .01, LARGE = 2**26
const MASKS = {'1.2.840.10008.5.1.4.1.1.66.4': 'SEG', '1.2.840.10008.5.1.4.1.1.66.7': 'SEG', '1.2.840.10008.5.1.4.1.1.481.3': 'RTSTRUCT'}
const LPS = [-1, -1, 1] // mm to the left and back as mm to the right and front, or back again

const nameOf = path => path.split('/').at(-1)
const parentOf = path => path.split('/').at(-2)

export async function isDicomFile(file) { return saysDicom(new Uint8Array(await file.slice(0, 132).arrayBuffer())) }

// Raise BadInput if a file is a mask rather than pictures
export async function checkNoMask(file) {
  const found = await parsed(file), kind = MASKS[found ? new Header(found.elements, found.le).text(T.sopClass) : '']
  if (kind)
    throw new BadInput(`${pathOf(file)}: is a DICOM ${kind}, which holds ${kind === 'SEG' ? 'a mask' : 'outlines'} and no scan; give the CT series`)
}

const damaged = (path, why) => new BadInput(`${path}: is a damaged DICOM file (${why}); copy or export it again`)

// The bytes of a file; of a large one that is not DICOM only the first
async function contents(file) {
  if (file instanceof Entry) return file.bytes(mayBeDicom)
  const head = file.size > LARGE ? new Uint8Array(await file.slice(0, 132).arrayBuffer()) : null
  if (head && !mayBeDicom(head)) return head
  if (file.size > MOST)
    throw new BadInput(`${pathOf(file)}: has ${size(file.size)}, and the limit of this page is ${size(MOST)}; use \`liverseg predict\` on the `
                       + 'command line')
  return new Uint8Array(await file.arrayBuffer())
}

async function parsed(file) {
  const raw = await contents(file)
  try { return parseDicom(raw, pathOf(file)) } catch (e) { throw e instanceof BadInput ? e : damaged(pathOf(file), e.message ?? e) }
}

// The pictures of a file, each with what its header says; null for what is not DICOM
async function slicesOf(file) {
  const found = await parsed(file), path = pathOf(file)
  if (!found) return null
  const header = new Header(found.elements, found.le)
  const picture = header.has(T.rows) && header.has(T.columns) && header.has(T.allocated)
  const several = header.items(T.perFrame).length
  if (picture) return framesOf(header, path).map((h, frame) => ({file, path, frame, nth: several ? frame + 1 : null, ...facts(h, path)}))
  if (!found.told) return null
  const classes = [header.text(T.sopClass), new Header(found.meta, true).text(T.mediaClass)].filter(Boolean)
  if (!classes.length || classes.some(c => CT.includes(c))) throw damaged(path, 'its header ends early')
  return []
}

// A header for each picture: the file's own, or one per frame of an enhanced multi-frame file
function framesOf(header, path) {
  const frames = header.items(T.perFrame), told = header.number(T.frames, 1)
  if (!frames.length) return [header]
  if (frames.length !== told) throw damaged(path, `it describes ${frames.length} of ${told} frames`)
  const common = header.items(T.shared)
  return frames.map((frame, n) => {
    const flat = new Map([...header.elements].filter(([, e]) => !e.items))
    for (const group of [...common, frame]) for (const [tag, e] of group) if (e.items?.length) {
      for (const [inner, value] of e.items[0]) flat.set(inner, value)
      flat.set(tag, e)
    }
    const one = new TextEncoder()
    flat.set(T.instance, {bytes: one.encode(String(n + 1))})
    flat.set(T.frames, {bytes: one.encode('1')})
    return new Header(flat, header.le)
  })
}

function facts(h, path) {
  const allocated = h.short(T.allocated, 16), stored = h.short(T.stored, allocated)
  const axes = h.vector(T.orientation, 6), numbers = [T.slope, T.intercept, T.instance, T.thickness, T.between].map(t => h.number(t))
  if ([T.position, T.orientation, T.spacing].some(t => h.text(t) && h.vector(t, {[T.position]: 3, [T.orientation]: 6, [T.spacing]: 2}[t]).every(Number.isNaN))
      || numbers.some(v => v !== null && Number.isNaN(v))) throw damaged(path, 'a value in its header is not a number')
  return {uid: h.text(T.series), kind: kindOf(h), shape: [h.short(T.rows, 0), h.short(T.columns, 0)], at: h.vector(T.position, 3),
    axes: [axes.slice(0, 3), axes.slice(3)], pixel: h.vector(T.spacing, 2), slope: numbers[0] ?? 1, inter: numbers[1] ?? 0,
    number: numbers[2], thick: numbers[3], gap: numbers[4], grey: h.text(T.photometric), reformat: REFORMAT.test(h.text(T.imageType)),
    pad: paddingOf(h, allocated), rescaled: numbers[1] !== null, bits: [stored, h.short(T.highBit, stored - 1)], allocated,
    signed: h.short(T.signed, 0) === 1,
    tells: PHASE_TAGS.map(([, tag]) => !h.has(tag) ? 'None' : NUMBERS.has(tag) ? String(h.short(tag)) : h.text(tag))}
}

function kindOf(h) {
  if (/LOCALIZER/.test(h.text(T.imageType) + h.text(T.frameType))) return 'localizer'
  if (h.short(T.samples, 1) !== 1) return 'colour picture'
  if (h.text(T.sopClass).startsWith('1.2.840.10008.5.1.4.1.1.7') && !h.text(T.position)) return 'secondary capture'
  if (![null, 1].includes(h.number(T.frames))) return 'film'
  return h.text(T.modality) || 'picture without a modality'
}

// The stored values that mean 'nothing was measured', as [lowest, highest], or null
function paddingOf(h, bits) {
  const ends = [T.padding, T.paddingLimit].map(t => h.short(t, null)).filter(v => v !== null)
  if (!h.has(T.padding) || !ends.length) return null
  const half = h.short(T.signed, 0) === 1 ? 2**(bits - 1) : 0
  const values = ends.map(v => ((v + half) % 2**bits + 2**bits) % 2**bits - half)
  return [Math.min(...values), Math.max(...values)]
}

async function picturesIn(files, folder, seen) {
  const found = []
  const count = {}
  for await (const file of filesBelow(files, count)) {
    found.push([file, await slicesOf(file)])
    await seen(found.length/count.known/2)
  }
  const like = path => `${path.slice(0, path.lastIndexOf('/') + 1)}|${nameOf(path).toLowerCase().replace(/[0-9a-f]+/g, '#')}`
  const known = new Set(found.filter(([, s]) => s?.length).map(([f]) => like(pathOf(f))))
  for (const [file, slices] of found) if (slices === null && known.has(like(pathOf(file))))
    throw new BadInput(`${pathOf(file)}: is not DICOM, unlike the files named like it; it is empty or damaged, copy it again`)
  const pictures = found.flatMap(([, s]) => s ?? [])
  if (!pictures.length)
    throw new BadInput(`${folder}: is a folder without DICOM pictures; give a NIfTI file, or the folder with the files of a CT series`)
  return pictures
}

const near = (a, b) => a.flat().every((v, i) => Math.abs(v - b.flat()[i]) < 2e-3 || Number.isNaN(v) && Number.isNaN(b.flat()[i]))

function grouped(pictures) {
  const groups = []
  for (const s of pictures) {
    const group = groups.find(([t]) => s.uid === t.uid && s.kind === t.kind && s.shape.join() === t.shape.join()
                                       && near(s.axes, t.axes) && near(s.pixel, t.pixel))
    if (group) group.push(s)
    else groups.push([s])
  }
  return groups
}

function listed(groups) {
  const count = g => g.length === 1 ? '1 slice' : `${g.length} slices`
  return groups.slice(0, 8).map(g => `${g[0].kind} (${count(g)}, ${[parentOf(g[0].path), nameOf(g[0].path)].filter(Boolean).join('/')})`).join(', ')
    + (groups.length > 8 ? ' …' : '')
}

// The longest CT series, reformats only where there is nothing else
async function chosen(folder, groups, notes) {
  const ct = groups.filter(g => g[0].kind === 'CT')
  if (!ct.length) throw new BadInput(`${folder}: holds no CT but ${listed(groups)}; give the folder of a CT series`)
  const rank = g => (g[0].reformat ? 0 : 1e9) + g.length, most = Math.max(...ct.map(rank)), best = ct.filter(g => rank(g) === most)
  let taken = best[0]
  if (best.length > 1) for (const g of best) if (await hasAir(g)) { taken = g; break }
  const others = groups.filter(g => g !== taken)
  if (others.length)
    notes.push(note('several series', `of ${groups.length} series the longest CT was taken, ${listed([taken])}, and left out: ${listed(others)}`))
  return taken
}

async function hasAir(group) {
  const s = group[Math.floor(group.length/2)]
  checkSeries(group)
  const hu = inHu(await storedPixels(s), s)
  return hu.some(v => v < -500)
}

function checkSeries(slices) {
  const [s] = slices, [rows, cols] = s.shape, n = slices.length
  if (!(rows > 0 && rows <= 8192 && cols > 0 && cols <= 8192 && rows*cols*n <= VOXELS))
    throw new BadInput(`${s.path}: claims ${n} slices of ${rows}×${cols} pixels, which no CT has; it is damaged, export it again`)
  for (const t of slices) {
    if (!['MONOCHROME2', ''].includes(t.grey))
      throw new BadInput(`${t.path}: holds ${t.grey} pixels, not CT numbers; export the original series`)
    if (t.bits[1] !== t.bits[0] - 1)
      throw new BadInput(`${t.path}: stores ${t.bits[0]} bits and says that the highest is number ${t.bits[1]}; it is damaged, export it again`)
    if (t.rescaled !== slices.some(u => u.rescaled))
      throw new BadInput(`${t.path}: has no rescale intercept, unlike other files of its series; export it again`)
  }
  if (!s.pixel.every(v => v > 0 && Number.isFinite(v)))
    throw new BadInput(`${s.path}: has no pixel spacing, so nothing can be measured; export it again`)
  if (Math.min(...s.pixel) < .01 || Math.max(...s.pixel) > 20)
    throw new BadInput(`${s.path}: says that its pixels are ${general(s.pixel[0])}×${general(s.pixel[1])} mm, which no CT has; export it again`)
  if (s.axes.flat().some(Number.isNaN)) return
  const off = [dot(s.axes[0], s.axes[0]) - 1, dot(s.axes[1], s.axes[1]) - 1, dot(s.axes[0], s.axes[1])]
  if (Math.max(...off.map(Math.abs)) > .01)
    throw new BadInput(`${s.path}: its rows and columns are not at right angles; export it again`)
}

let last = {file: null, found: null} // several slices of one file are read in a row

// The stored values of a picture, row after row
async function storedPixels(s) {
  if (last.file !== s.file) last = {file: s.file, found: await parsed(s.file)}
  const {elements, le, syntax, compressed} = last.found, [rows, cols] = s.shape, count = rows*cols
  const here = elements.get(PIXELS), frames = new Header(elements, le).number(T.frames, 1) || 1, width = s.allocated/8
  if (compressed || here?.fragments) return unpackedPixels(s, last.found, frames)
  const need = count*frames*width
  if (here && here.bytes.length - need > 1)
    throw new BadInput(`${s.path}: holds ${here.bytes.length - need} bytes more than ${rows} rows of ${cols} pixels need; it is `
                       + 'damaged, export it again')
  const cannot = why => new BadInput(`${s.path}: its pixels cannot be read (${why}); the file is truncated or damaged, copy it again`)
  if (!here) throw cannot('the file has no pixels')
  if (here.bytes.length < need)
    throw cannot(`The number of bytes of pixel data is less than expected (${here.bytes.length} vs ${need} bytes)`)
  const view = new DataView(here.bytes.buffer, here.bytes.byteOffset + s.frame*count*width), kind = `${s.signed ? 'Int' : 'Uint'}${s.allocated}`
  if (!view[`get${kind}`]) throw cannot(`it has ${s.allocated} bits`)
  return Float64Array.from({length: count}, (_, i) => view[`get${kind}`](i*width, le))
}

// The same of a file whose pixels are compressed
async function unpackedPixels(s, found, count) {
  const name = SYNTAXES[found.syntax] ?? found.syntax
  if (!SYNTAXES[found.syntax])
    throw new BadInput(`${s.path}: is compressed as ${name}, which this page cannot decode; export it uncompressed`)
  try {
    found.frames ??= framesIn(found, count)
    return await decoded(found.frames[s.frame], s, found.syntax)
  } catch (e) {
    throw new BadInput(`${s.path}: its pixels, compressed as ${name}, cannot be decoded; the file is truncated or damaged, copy it again`)
  }
}

// HU of one picture; float64 numbers, whole where slope and intercept are
function inHu(stored, s) {
  if (!(Number.isFinite(s.slope) && Number.isFinite(s.inter) && s.slope > 0))
    throw new BadInput(`${s.path}: its rescale slope ${general(s.slope)} and intercept ${general(s.inter)} do not give HU; export it again`)
  return stored.map(v => s.pad && v >= s.pad[0] && v <= s.pad[1] ? AIR : v*s.slope + s.inter)
}

function normalOf(s) { return cross(...s.axes) }

// The slices with their height z along the normal, in order of it
function placed(slices, folder, notes) {
  const lost = slices.filter(s => s.at.some(Number.isNaN) || s.axes.flat().some(Number.isNaN))
  if (lost.length && lost.length < slices.length)
    throw new BadInput(`${lost[0].path}: does not say where it lies, unlike ${slices.length - lost.length} other files of its series; `
                       + 'export it again')
  if (lost.length) placedByNumber(slices, folder, notes)
  const normal = normalOf(slices[0])
  for (const s of slices) s.z = dot(s.at, normal)
  if (!slices.every(s => Number.isFinite(s.z)))
    throw new BadInput(`${slices[0].path}: its series has positions that are not numbers; export it again`)
  return [...slices].sort((a, b) => a.z - b.z || byName(nameOf(a.path), nameOf(b.path)) || a.frame - b.frame)
}

function placedByNumber(slices, folder, notes) {
  if (slices.length > 1 && slices.some(s => s.number === null))
    throw new BadInput(`${folder}: its slices have neither positions nor numbers, so their order is unknown; export the `
                       + 'series again')
  const step = thicknessOf(slices[0], notes, slices[0].gap, slices[0].thick)
  for (const s of slices) {
    if (s.axes.flat().some(Number.isNaN)) s.axes = [[1, 0, 0], [0, 1, 0]]
    s.at = normalOf(s).map(v => v*step*(s.number ?? 0))
  }
  notes.push(note('no position', 'the files do not say where their slices lie: they are taken in order of their instance number, '
                  + `${general(step)} mm apart, and head and feet may be exchanged`))
}

function thicknessOf(s, notes, ...known) {
  const length = known.find(v => v && Number.isFinite(v))
  if (length === undefined)
    notes.push(note('no thickness', `${nameOf(s.path)} has no slice thickness: 1 mm is assumed, so volumes in mL are wrong`))
  return Math.abs(length ?? 1) || 1
}

// Drop slices that lie where another one with the same pixels lies
async function withoutTwins(slices, notes) {
  const kept = [], dropped = []
  let seen = new Set()
  for (const [i, s] of slices.entries()) {
    const before = i ? s.z - slices[i - 1].z : Infinity, after = i < slices.length - 1 ? slices[i + 1].z - s.z : Infinity
    if (before >= SAME) seen = new Set()
    if (Math.min(before, after) >= SAME) { kept.push(s); continue } // alone, so its pixels need not be read
    const mark = sha256(new Uint8Array(Float32Array.from(inHu(await storedPixels(s), s)).buffer))
    const twin = seen.has(mark)
    ;(twin ? dropped : kept).push(s)
    seen.add(mark)
  }
  if (dropped.length)
    notes.push(note('duplicate slices', `${dropped.length} of ${slices.length} slices are copies of another one and were dropped, `
                    + `such as ${nameOf(dropped[0].path)}`))
  return kept
}

const gaps = slices => slices.slice(1).map((s, i) => s.z - slices[i].z)
const crowded = slices => gaps(slices).some(d => d < SAME)

// The longest of the stacks that one series holds
function onePhase(slices, notes) {
  if (!crowded(slices)) return slices
  const places = 1 + gaps(slices).filter(d => d >= SAME).length
  for (const [k, [key]] of PHASE_TAGS.entries()) {
    const values = [...new Set(slices.map(s => s.tells[k]))].sort(byName), stacks = values.map(v => slices.filter(s => s.tells[k] === v))
    const best = stacks.reduce((a, b) => b.length > a.length ? b : a)
    if (stacks.some(crowded) || 2*best.length < places) continue
    const {path, nth} = best[0], where = nth === null ? nameOf(path) : `frame ${nth} of ${nameOf(path)}`
    notes.push(note('several series', `the series holds ${stacks.length} stacks that differ in ${key}: the longest was taken `
                    + `(${best.length} slices, from ${where}), the others left out`))
    return best
  }
  const i = gaps(slices).findIndex(d => d < SAME), [a, b] = [slices[i], slices[i + 1]]
  if (a.path === b.path)
    throw new BadInput(`${b.path}: its frames ${a.frame + 1} and ${b.frame + 1} lie at one place but show different things, and no `
                       + 'tag tells the two phases in this file apart; export them one by one')
  throw new BadInput(`${slices[i + 1].path}: lies where ${nameOf(slices[i].path)} lies but shows something else, and no tag tells the `
                     + 'two scans of this series apart; give a folder with one of them')
}

const median = a => { const s = [...a].sort((x, y) => x - y), n = s.length; return n % 2 ? s[(n - 1)/2] : (s[n/2 - 1] + s[n/2])/2 }

// What is wrong with the distances of the slices, or null
function unevenness(slices) {
  if (slices.length < 3) return null
  const n = slices.length, normal = normalOf(slices[0]), [first, end] = [slices[0].at, slices[n - 1].at]
  const off = slices.map((s, k) => s.at.map((v, i) => v - (k === n - 1 ? end[i] : first[i] + k*((end[i] - first[i])/(n - 1)))))
  const d = slices.slice(1).map((s, k) => dot(s.at, normal) - dot(slices[k].at, normal)), step = median(d)
  const up = off.map(o => dot(o, normal))
  if (Math.max(...up.map(Math.abs)) <= Math.max(.1*step, .1))
    return movedSideways(slices, off.map((o, k) => Math.hypot(...o.map((v, i) => v - up[k]*normal[i]))))
  const regular = Math.max(...d.map(v => Math.abs(v/step - rint(v/step)))) < .1
  const lost = d.map(v => regular ? rint(v/step) - 1 : 0), some = lost.some(Boolean), sum = lost.reduce((a, b) => a + b, 0)
  const odd = d.map(v => Math.abs(v - step)), k = some ? lost.findIndex(v => v > 0) : odd.indexOf(Math.max(...odd))
  const at = Math.max(0, k), where = `after slice ${at} (${nameOf(slices[at].path)})`
  let what = sum > 1 ? `${sum} slices are missing, the first ${where}` : `1 slice is missing ${where}`
  if (!some) what = `the oddest is ${where}`
  return `slice distances vary from ${general(Math.min(...d), 4)} to ${general(Math.max(...d), 4)} mm: ${what}, so lengths along the `
    + 'patient and volumes in mL are wrong'
}

function movedSideways(slices, off) {
  const most = Math.max(...off)
  if (most <= Math.max(.5*Math.min(...slices[0].pixel), .1)) return null
  return `slices do not lie in one line: ${nameOf(slices[off.indexOf(most)].path)} is ${general(most, 4)} mm to the side, so shapes are `
    + 'distorted'
}

// Index (column, row, slice) to mm in RAS+
function affineOf(slices, notes) {
  const [first] = slices, n = slices.length, normal = normalOf(first)
  let step = n > 1 ? slices[n - 1].at.map((v, i) => (v - first.at[i])/(n - 1))
    : normal.map(v => v*thicknessOf(first, notes, first.thick, first.gap))
  const height = dot(step, normal), up = normal.map(v => v*height), side = Math.hypot(...step.map((v, i) => v - up[i]))
  if (side*(n - 1) > .1 && side > 1e-3*Math.hypot(...step)) {
    const tilt = Math.atan2(side, height)*180/Math.PI
    notes.push(note('sheared', `the slices are stacked at a slant of ${tilt.toFixed(1)}° (a tilted gantry), so the grid is sheared`))
  } else step = up
  return [0, 1, 2].map(i => [first.axes[0][i]*first.pixel[1], first.axes[1][i]*first.pixel[0], step[i], first.at[i]].map(v => LPS[i]*v))
    .concat([[0, 0, 0, 1]])
}

function otherScale(slices) {
  const scales = slices.map(s => `${s.slope} ${s.inter}`), count = new Map()
  for (const s of scales) count.set(s, (count.get(s) ?? 0) + 1)
  const most = [...count].reduce((a, b) => b[1] > a[1] ? b : a)[0], i = scales.findIndex(s => s !== most)
  if (i < 0) return null
  const usual = slices[scales.indexOf(most)], s = slices[i]
  return `${nameOf(s.path)} has the rescale slope ${general(s.slope)} and intercept ${general(s.inter)}, most slices `
    + `${general(usual.slope)} and ${general(usual.inter)}; check whether its HU are right`
}

// HU (column, row, slice): int16, or float32 where that would lose something
async function stacked(slices, seen) {
  const [rows, cols] = slices[0].shape, count = rows*cols
  let out = new Int16Array(count*slices.length)
  for (const [k, s] of slices.entries()) {
    const hu = inHu(await storedPixels(s), s), whole = Number.isInteger(s.slope) && Number.isInteger(s.inter)
    if (out instanceof Int16Array && !(whole && hu.every(v => v >= -32768 && v <= 32767))) out = Float32Array.from(out)
    out.set(hu, k*count)
    await seen(.5 + (k + 1)/slices.length/2)
  }
  last = {file: null, found: null}
  return out
}

// The longest CT series among some files as a volume in RAS; raises BadInput
export async function readSeries(files, folder, seen = () => {}) {
  const notes = []
  let slices = await chosen(folder, grouped(await picturesIn(files, folder, seen)), notes)
  checkSeries(slices)
  slices = await withoutTwins(placed(slices, folder, notes), notes)
  slices = onePhase(slices, notes)
  const stored = [slices[0].shape[1], slices[0].shape[0], slices.length], affine = affineOf(slices, notes)
  const uneven = unevenness(slices), odd = otherScale(slices)
  if (uneven) notes.push(note('uneven slices', uneven))
  if (odd) notes.push(note('rescale differs', odd))
  if (!slices.every(s => s.rescaled))
    notes.push(note('no rescale', `${nameOf(slices[0].path)} and the other files have no rescale intercept: their numbers are taken as HU`))
  const fractions = slices.some(s => !Number.isInteger(s.slope) || !Number.isInteger(s.inter))
  checkMemory(stored, fractions ? 4 : 2, folder)
  const data = await stacked(slices, seen), leans = notes.some(n => n.code === 'sheared')
  const head = newHeader(stored, data instanceof Int16Array ? 4 : 16, affine, leans)
  const vol = intoRas(data, stored, head.affine, folder, [...headerNotes(head, head.affine, stored), ...notes])
  return {...vol, notes: lastOfEach(vol.notes), head, stored}
}

// Of notes with one code the last, at the place of the first
function lastOfEach(notes) {
  const found = new Map()
  for (const n of notes) found.set(n.code, n)
  return [...found.values()]
}
