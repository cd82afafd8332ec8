// Everything slow: the worker holds the scan, the network and the mask, and the page requests what it shows.
import * as ort from './vendor/ort.js'
import {BadInput, Stopped, size} from './words.js'
import {beside, copyPlane} from './volume.js'
import {gzipped, maskFile, memoryFor} from './nifti.js'
import {loadDecoder, readScan} from './scan.js'
import {Segmenter} from './segment.js'
import {surface} from './solid.js'
import {sha256} from './sha256.js'

const here = name => new URL(name, import.meta.url).href
let segmenter = null, vol = null, found = null, stop = false, wanted = null

const say = (is, more = {}, move = []) => postMessage({is, ...more}, move)
const breathe = () => new Promise(go => setTimeout(go)) // lets messages in, such as Cancel

async function bytesOf(name) {
  const answer = await fetch(here(name))
  if (!answer.ok) throw new BadInput(`${name}: cannot be loaded (${answer.status}); reload the page`)
  return new Uint8Array(await answer.arrayBuffer())
}

async function start({threads}) {
  const meta = JSON.parse(new TextDecoder().decode(await bytesOf('model.json'))), raw = await bytesOf('liver.onnx')
  if (sha256(raw) !== meta.onnx_sha256)
    throw new BadInput(`liver.onnx: has the SHA-256 ${sha256(raw).slice(0, 8)}…, but model.json gives `
                       + `${meta.onnx_sha256.slice(0, 8)}…; it is damaged or another file, reload the page`)
  ort.env.wasm.wasmBinary = await bytesOf('vendor/ort.wasm')
  ort.env.wasm.wasmPaths = {mjs: here('vendor/ort-threads.js')}
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads ?? Math.min(4, navigator.hardwareConcurrency || 1) : 1
  await loadDecoder(await bytesOf('vendor/dcm2niix.wasm'))
  const session = await ort.InferenceSession.create(raw, {executionProviders: ['wasm'], graphOptimizationLevel: 'all'})
  const net = async (x, dims) => {
    const {scores} = await session.run({slices: new ort.Tensor('float32', x, dims)})
    return scores.data
  }
  await net(new Float32Array(3*64*64), [1, 3, 64, 64])
  segmenter = new Segmenter(net, meta)
  say('ready', {threads: ort.env.wasm.numThreads})
}

// Files arrive without their paths, which are sent beside them
function withPath({file, path, folder}) {
  return Object.defineProperties(file, {name: {value: path.split('/').at(-1)}, path: {value: path}, folder: {value: folder}})
}

async function scan({files, thorough, name}) {
  vol = found = null
  stop = false
  const begin = performance.now()
  let last = 0
  vol = await readScan(files.map(withPath), name, async share => {
    if (stop) throw new Stopped()
    if (performance.now() - last < 50) return
    last = performance.now()
    say('reading', {share})
    await breathe()
  })
  const voxels = vol.data.length, memory = memoryFor(voxels, vol.shape[2], vol.data.BYTES_PER_ELEMENT, segmenter.meta.size)
  say('scan', {shape: vol.shape, spacing: vol.spacing, name: vol.name, memory: size(memory)})
  await breathe()
  found = null
  const seconds = () => Math.round((performance.now() - begin)/100)/10
  const answer = await segmenter.segment(vol, {thorough, seen: async (done, of) => {
    say('slice', {done, of})
    await breathe()
    if (stop) throw new Stopped()
  }})
  found = answer
  tell({seconds: seconds()})
}

// Post the result, the planes with most of it, and its surface
function tell(more = {}) {
  const solid = surface(vol, found.mask), counts = vol.shape.map(n => new Uint32Array(n)), [nx, ny, nz] = vol.shape
  const {strides: [sx, sy, sz], start: begin} = vol
  for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++)
    for (let x = 0, at = begin + z*sz + y*sy; x < nx; x++, at += sx) if (found.mask[at]) { counts[0][x]++; counts[1][y]++; counts[2][z]++ }
  const most = counts.map(c => c.indexOf(c.reduce((a, b) => Math.max(a, b), 0)))
  say('found', {result: found.result(), solid, most, ...more})
}

function plane({axis, k}) {
  if (!vol) return
  const hu = copyPlane(vol, axis, k), mask = found && copyPlane(beside(vol, found.mask), axis, k).data
  say('plane', {axis, k, width: hu.width, height: hu.height, hu: hu.data, mask}, [hu.data.buffer, ...mask ? [mask.buffer] : []])
}

async function threshold({value}) {
  if (!found) return
  wanted = value
  await breathe()
  if (wanted !== value || !found) return // a newer value has arrived
  found.retake(value)
  tell()
}

async function save() {
  if (!found) return
  const name = `${vol.name.replace(/\.(nii(\.gz)?|hdr|zip|dcm)$/i, '')}_liver.nii.gz`
  say('file', {name, blob: await gzipped(maskFile(vol.head, found.mask))})
}

const tasks = {start, scan, plane, threshold, save, stop: () => { stop = true }}

onmessage = async ({data: {task, ...how}}) => {
  try { await tasks[task](how) } catch (e) {
    if (task === 'scan') vol = found = null
    if (e instanceof Stopped) say('stopped')
    else if (e instanceof BadInput) say('wrong', {text: e.message, task})
    else if (e instanceof RangeError && /alloc|length/i.test(e.message))
      say('wrong', {text: `${how.name ?? 'scan'}: does not fit into the memory that this browser gives to a page; close other `
                    + 'tabs, or use `liverseg predict` on the command line', task})
    else say('wrong', {text: `${how.name ?? 'scan'}: could not be segmented (${e.message}); report this`, task})
  }
}
