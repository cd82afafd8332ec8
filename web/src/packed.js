// The compressed pixels of a DICOM file: split into frames as pydicom does, each decoded by dcm2niix.
import dcm2niix from './vendor/dcm2niix.js'
import {parseHeader} from './nifti.js'
import {PIXELS} from './dicomfile.js'

export const SYNTAXES = {'1.2.840.10008.1.2.5': 'RLE Lossless', '1.2.840.10008.1.2.4.50': 'JPEG Baseline (Process 1)',
  '1.2.840.10008.1.2.4.57': 'JPEG Lossless, Non-Hierarchical (Process 14)',
  '1.2.840.10008.1.2.4.70': 'JPEG Lossless, Non-Hierarchical, First-Order Prediction (Process 14 [Selection Value 1])',
  '1.2.840.10008.1.2.4.80': 'JPEG-LS Lossless Image Compression', '1.2.840.10008.1.2.4.81': 'JPEG-LS Lossy (Near-Lossless) Image Compression',
  '1.2.840.10008.1.2.4.90': 'JPEG 2000 Image Compression (Lossless Only)', '1.2.840.10008.1.2.4.91': 'JPEG 2000 Image Compression'}
const OFFSETS = 0x7fe00001, LENGTHS = 0x7fe00002 // of frames, in a table of their own
const ITEM = 0xfffee000

let decoder = null // dcm2niix, compiled

export async function loadDecoder(bytes) { decoder = await WebAssembly.compile(bytes) }

// The frames of a file, each a list of its fragments; raises Error where their number does not fit
export function framesIn({elements}, count) {
  const {bytes} = elements.get(PIXELS), [offsets, lengths] = [OFFSETS, LENGTHS].map(tag => longs(elements.get(tag)?.bytes))
  const {table, start, fragments} = itemsOf(bytes)
  if (offsets.length && lengths.length)
    return offsets.slice(0, lengths.length).map((at, i) => [bytes.subarray(start + at + 8, start + at + 8 + lengths[i])])
  if (table.length) return byOffsets(table, fragments)
  if (fragments.length === 1 || count === 1) return [fragments]
  if (fragments.length === count) return fragments.map(f => [f])
  if (fragments.length < count) throw new Error('there are fewer fragments than frames')
  return byMarkers(fragments)
}

const viewOf = bytes => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
const longs = bytes => bytes ? Array.from({length: bytes.length >> 3}, (_, i) => Number(viewOf(bytes).getBigUint64(8*i, true))) : []

// The table of offsets, where the first fragment begins, and the fragments
function itemsOf(bytes) {
  const view = viewOf(bytes), items = []
  let at = 0, start = 0
  while (at + 8 <= bytes.length) {
    const tag = view.getUint16(at, true)*65536 + view.getUint16(at + 2, true), length = view.getUint32(at + 4, true)
    if (tag !== ITEM) break
    items.push(bytes.subarray(at + 8, at + 8 + length))
    at += 8 + length
    if (items.length === 1) start = at
  }
  const [table, ...fragments] = items
  if (!fragments.length) throw new Error('the file has no pixels')
  return {table: Array.from({length: table.length >> 2}, (_, i) => viewOf(table).getUint32(4*i, true)), start, fragments}
}

function byOffsets(table, fragments) {
  const frames = [[]]
  let at = 0
  for (const f of fragments) {
    if (frames.length < table.length && at >= table[frames.length]) frames.push([])
    frames.at(-1).push(f)
    at += f.length + 8
  }
  return frames
}

// A frame ends where a fragment ends with the marker of JPEG's end
function byMarkers(fragments) {
  const frames = [[]], ends = f => { const tail = f.subarray(-10); return tail.some((v, i) => v === 0xff && tail[i + 1] === 0xd9) }
  for (const f of fragments) {
    frames.at(-1).push(f)
    if (ends(f)) frames.push([])
  }
  return frames.filter(f => f.length)
}

// The stored values of a frame, row after row; raises Error
export async function decoded(fragments, s, syntax) {
  const [rows, cols] = s.shape, quiet = () => {}
  const instantiateWasm = (imports, done) => done(new WebAssembly.Instance(decoder, imports))
  const tool = await dcm2niix({instantiateWasm, print: quiet, printErr: quiet, noInitialRun: true})
  for (const folder of ['/in', '/out']) tool.FS.mkdir(folder)
  tool.FS.writeFile('/in/x.dcm', oneFrame(fragments, s, syntax))
  tool.callMain(['-s', 'y', '-z', 'n', '-b', 'n', '-w', '1', '-f', 'out', '-o', '/out', '/in/x.dcm'])
  const found = tool.FS.readdir('/out').filter(n => n.endsWith('.nii'))
  if (found.length !== 1) throw new Error('nothing was decoded')
  const raw = tool.FS.readFile(`/out/${found[0]}`), head = parseHeader(raw, s.path, 'nii')
  const Kind = {2: Uint8Array, 4: Int16Array, 512: Uint16Array, 8: Int32Array}[head.datatype]
  if (!Kind || head.shape[0] !== cols || head.shape[1] !== rows || head.shape.slice(2).some(n => n > 1)) throw new Error('it has another shape')
  const values = new Kind(raw.slice(head.offset).buffer, 0, rows*cols), out = new Float64Array(rows*cols)
  for (let y = 0; y < rows; y++) out.set(values.subarray((rows - 1 - y)*cols, (rows - y)*cols), y*cols) // NIfTI's rows go up
  return out
}

// A DICOM file with one frame and no more than dcm2niix needs
function oneFrame(fragments, s, syntax) {
  const text = new TextEncoder(), parts = []
  const add = (group, element, vr, value) => {
    const raw = typeof value === 'string' ? text.encode(value.length % 2 ? value + (vr === 'UI' ? '\0' : ' ') : value)
      : vr === 'US' ? Uint8Array.of(value & 255, value >> 8) : Uint8Array.of(...[0, 8, 16, 24].map(k => value >> k & 255))
    parts.push(Uint8Array.of(group & 255, group >> 8, element & 255, element >> 8, ...text.encode(vr), raw.length & 255, raw.length >> 8), raw)
  }
  add(2, 0x10, 'UI', syntax)
  parts.unshift(new Uint8Array(128), text.encode('DICM'))
  const uid = '1.2.826.0.1.3680043.8.498.1', ct = '1.2.840.10008.5.1.4.1.1.2'
  for (const [group, element, vr, value] of [[8, 0x16, 'UI', ct], [8, 0x18, 'UI', uid], [8, 0x60, 'CS', 'CT'], [0x18, 0x50, 'DS', '1'],
    [0x20, 0xd, 'UI', uid], [0x20, 0xe, 'UI', uid], [0x20, 0x11, 'IS', '1'], [0x20, 0x13, 'IS', '1'], [0x20, 0x32, 'DS', '0\\0\\0'],
    [0x20, 0x37, 'DS', '1\\0\\0\\0\\1\\0'], [0x28, 2, 'US', 1], [0x28, 4, 'CS', 'MONOCHROME2'], [0x28, 0x10, 'US', s.shape[0]],
    [0x28, 0x11, 'US', s.shape[1]], [0x28, 0x30, 'DS', '1\\1'], [0x28, 0x100, 'US', s.allocated], [0x28, 0x101, 'US', s.bits[0]],
    [0x28, 0x102, 'US', s.bits[1]], [0x28, 0x103, 'US', Number(s.signed)], [0x28, 0x1052, 'DS', '0'], [0x28, 0x1053, 'DS', '1']])
    add(group, element, vr, value)
  const item = length => Uint8Array.of(0xfe, 0xff, 0, 0xe0, ...[0, 8, 16, 24].map(k => length >>> k & 255))
  parts.push(Uint8Array.of(0xe0, 0x7f, 0x10, 0, 0x4f, 0x42, 0, 0, 255, 255, 255, 255), item(0))
  const length = fragments.reduce((n, f) => n + f.length, 0)
  parts.push(item(length + length % 2), ...fragments, new Uint8Array(length % 2), Uint8Array.of(0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0))
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0))
  let at = 0
  for (const p of parts) { out.set(p, at); at += p.length }
  return out
}
