// The page's modules in Node, for tests/test_web.py: node web_node.mjs FOLDER JOB.json, where the job lists what to do.
import {openAsBlob, readFileSync, readdirSync, statSync, writeFileSync} from 'node:fs'
import {basename, dirname, relative} from 'node:path'
import {pathToFileURL} from 'node:url'

const [folder, jobFile] = process.argv.slice(2)
const load = name => import(pathToFileURL(`${folder}/${name}`))
const [nifti, volume, pixels, check, post, segment, words, scan, sha] =
  await Promise.all(['nifti', 'volume', 'pixels', 'check', 'post', 'segment', 'words', 'scan', 'sha256'].map(n => load(`${n}.js`)))

async function fileOf(path) {
  const blob = await openAsBlob(path)
  return Object.assign(blob, {name: basename(path)})
}

const ras = vol => { // a volume's voxels, x fastest
  const [nx, ny, nz] = vol.shape, out = new Float32Array(nx*ny*nz)
  check.walk(vol, (v, x, y, z) => { out[(z*ny + y)*nx + x] = v })
  return out
}

const facts = vol => ({shape: vol.shape, affine: vol.affine, spacing: vol.spacing, kind: vol.data.constructor.name,
  notes: vol.notes.map(n => n.text)})

const jobs = {
  // Read a scan, of which `pair` may have the voxels; those go to `out` in RAS order
  async read({path, pair, out}) {
    const vol = await nifti.readNifti(await fileOf(path), () => {}, pair && await fileOf(pair))
    if (out) writeFileSync(out, ras(vol))
    return {...facts(vol), odd: check.notHu(check.histogram(vol.data)).map(n => n.text)}
  },
  // Read a file, or those of a folder, as they are dropped on the page; a mask of what is above a threshold goes to `mask`
  async series({path, paths, out, mask}) {
    const isFolder = statSync(path).isDirectory()
    const names = isFolder ? readdirSync(path, {recursive: true, withFileTypes: true}).filter(e => e.isFile()).map(e => `${e.parentPath ?? e.path}/${e.name}`) : paths ?? [path]
    const files = await Promise.all(names.map(async n => Object.assign(await fileOf(n), {path: relative(dirname(path), n), folder: isFolder})))
    await scan.loadDecoder(readFileSync(`${folder}/vendor/dcm2niix.wasm`))
    const vol = await scan.readScan(files, basename(path), () => {})
    if (out) writeFileSync(out, ras(vol))
    if (mask) {
      const blob = nifti.maskFile(vol.head, Uint8Array.from(vol.data, v => v > 100))
      writeFileSync(mask, Buffer.from(await (await nifti.gzipped(blob)).arrayBuffer()))
    }
    return {...facts(vol), odd: check.notHu(check.histogram(vol.data)).map(n => n.text)}
  },
  async sha256({paths}) { return paths.map(p => sha.sha256(new Uint8Array(readFileSync(p)))) },
  // Read a scan and write a mask of what is above a threshold on its grid
  async mask({path, pair, above, out}) {
    const vol = await nifti.readNifti(await fileOf(path), () => {}, pair && await fileOf(pair))
    const blob = nifti.maskFile(vol.head, Uint8Array.from(vol.data, v => v > above))
    writeFileSync(out, Buffer.from(await (await nifti.gzipped(blob)).arrayBuffer()))
    return facts(vol)
  },
  // Read a scan and a mask on its grid; the mask cleaned up, and what is odd about it
  async judge({path, mask, out}) {
    const vol = await nifti.readNifti(await fileOf(path)), m = await nifti.readNifti(await fileOf(mask))
    const data = Uint8Array.from(m.data, v => v > 0), lung = check.lungLike(vol)
    const notes = check.judgeMask(vol, data).map(n => n.text)
    const [n, voxels] = post.withoutSpecks(volume.beside(vol, data), vol.spacing)
    writeFileSync(out, ras(volume.beside(vol, data)))
    return {notes, n, voxels, ml: volume.millilitres(voxels, vol.affine), air: lung.air.reduce((a, b) => a + b, 0),
      inside: lung.inside.reduce((a, b) => a + b, 0)}
  },
  // What the network sees of a picture of HU (float32 or int16, h×w)
  async prepare({path, kind, h, w, meta, out}) {
    const raw = readFileSync(path), Kind = {int16: Int16Array, float32: Float32Array}[kind]
    const hu = new Kind(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length)), {size} = meta
    const x = pixels.preparer(meta, h, w)(hu, [[0, size], [0, size]], new Float32Array(3*size*size))
    writeFileSync(out, x)
    return {}
  },
  // A map of size×size on a grid of h×w
  async enlarge({path, size, h, w, out}) {
    const raw = readFileSync(path), map = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.length))
    writeFileSync(out, pixels.enlarger(size, h, w)(map, new Float32Array(h*w)))
    return {}
  },
  async words({numbers}) { return numbers.map(([v, d]) => [words.general(v, d), words.whole(v)]) },
  async memory({shape, bytes}) { return nifti.checkMemory(shape, bytes, 'scan') },
  // A whole segmentation, by ONNX Runtime's WASM
  async segment({path, thorough, out, ort}) {
    const {InferenceSession, Tensor, env} = await import(pathToFileURL(ort))
    env.wasm.numThreads = 1
    const session = await InferenceSession.create(readFileSync(`${folder}/liver.onnx`)), start = Date.now()
    const net = async (x, dims) => (await session.run({slices: new Tensor('float32', x, dims)})).scores.data
    const vol = await nifti.readNifti(await fileOf(path))
    const found = await new segment.Segmenter(net, JSON.parse(readFileSync(`${folder}/model.json`))).segment(vol, {thorough})
    writeFileSync(out, Buffer.from(await (await nifti.gzipped(nifti.maskFile(vol.head, found.mask))).arrayBuffer()))
    return {...found.result(), seconds: (Date.now() - start)/1000}
  }
}

const answers = []
for (const {job, ...how} of JSON.parse(readFileSync(jobFile))) {
  try { answers.push(await jobs[job](how)) } catch (e) {
    if (!(e instanceof words.BadInput)) throw e
    answers.push({bad: e.message})
  }
}
console.log(JSON.stringify(answers))
