// Read through a zip archive as if it were a folder: liverseg/archive.py, in the same words. Nothing is unpacked before it is read.
import {Inflate} from './vendor/pako.js'
import {BadInput, quoted, whole} from './words.js'

const LIMITS = {files: 200000, archives: 200, bytes: 64*2**30} // in all that is given; nested archives count again
const LARGEST = 2**31 // bytes of one file in an archive; what claims more is damaged or a trap
const SWELLS = 200 // times the packed size, beyond 4 GiB
const EXPANDS = 1032 // the most that deflate can make of one byte
const BLOCK = 2**22 // bytes read at once
const CP437 = 'ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0'

export const pathOf = file => file.path ?? (file.webkitRelativePath || file.name)
export const isZip = path => /\.zip$/i.test(path)
const naturalKey = name => name.toLowerCase().replace(/[0-9]+/g, m => m.padStart(64, '0'))
const compare = (a, b) => a < b ? -1 : a > b ? 1 : 0
export const byName = (a, b) => compare(naturalKey(a), naturalKey(b)) || compare(a, b)
const byPath = (a, b) => {
  const [p, q] = [a.split('/'), b.split('/')]
  for (let i = 0; i < Math.min(p.length, q.length); i++) if (p[i] !== q[i]) return byName(p[i], q[i])
  return p.length - q.length
}
const hidden = path => path.split('/').slice(1).some(part => part.startsWith('.') || part === '__MACOSX')

// All files, in order, with those in archives and in archives within them. `count.known` becomes the number of files so far known
export async function* filesBelow(files, count = {}) {
  const left = {...LIMITS}
  count.known = files.length
  yield* walk(files, left, count)
}

async function* walk(files, left, count) {
  const shown = files.filter(f => !hidden(pathOf(f))).sort((a, b) => byPath(pathOf(a), pathOf(b)))
  for (const file of shown) {
    const path = pathOf(file), depth = path.split('/').length - 1
    if (depth > 17) continue
    const zip = isZip(path) ? await opened(file, path) : null
    left[zip && depth ? 'archives' : 'files']--
    left.bytes -= zip?.bytes ?? 0
    if (left.bytes < 0)
      throw new BadInput(`${path}: comes to more than ${LIMITS.bytes/2**30} GiB unpacked, together with the archives before it; unpack it `
                         + 'first, or give the folder with one series')
    if (left.files < 0 || left.archives < 0)
      throw new BadInput(`${path}: comes after ${LIMITS.files} files or ${LIMITS.archives} archives within archives; give the folder with one `
                         + 'series')
    if (!zip) { yield file; continue }
    count.known += zip.entries.length - 1
    if (depth <= 16) yield* walk(zip.entries, left, count)
  }
}

// An archive's files and the bytes that all of them claim to hold
async function opened(file, path) {
  const source = file instanceof Entry ? await file.blob() : file
  let found
  try { found = await directory(source) } catch (e) {
    throw new BadInput(`${path}: is damaged or is not a zip archive (${e.message}); copy or download it again`)
  }
  if (found.length && found.reduce((low, e) => Math.min(low, e.at), Infinity))
    throw new BadInput(`${path}: is damaged, since it ends like an archive within it; copy or download it again`)
  const sum = key => found.reduce((n, e) => n + e[key], 0), bytes = sum('size')
  if (bytes > Math.max(2**32, SWELLS*sum('packed')))
    throw new BadInput(`${path}: unpacks to ${whole(bytes/2**30)} GiB, more than ${SWELLS} times its size; check the archive, or unpack it first`)
  return {bytes, entries: tree(found, source, path)}
}

// The files at safe paths below the archive; of two at one path the last
function tree(found, source, path) {
  const files = new Map(), folders = new Set()
  for (const e of found) {
    const name = e.name.replaceAll('\\', '/'), parts = name.split('/').filter(p => !['', '.', '..'].includes(p))
    if (!parts.length || parts.length > 64) continue
    for (let n = 1; n < parts.length; n++) folders.add(parts.slice(0, n).join('/'))
    if (name.endsWith('/')) folders.add(parts.join('/'))
    else files.set(parts.join('/'), e)
  }
  return [...files].filter(([name]) => !folders.has(name)).map(([name, e]) => new Entry(source, e, `${path}/${name}`))
}

const bytesIn = async (blob, from, to) => new Uint8Array(await blob.slice(from, to).arrayBuffer())
const viewOf = bytes => new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
const long = (view, at) => Number(view.getBigUint64(at, true))

// Where the list of an archive's files lies, as Python's zipfile finds it
async function ending(blob) {
  const from = Math.max(0, blob.size - 2**16 - 22), tail = await bytesIn(blob, from, blob.size), view = viewOf(tail)
  const marked = at => view.getUint32(at, true) === 0x06054b50
  let at = tail.length - 22
  if (at >= 0 && !(marked(at) && view.getUint16(at + 20, true) === 0)) for (at = tail.length - 4; at >= 0 && !marked(at);) at--
  if (at < 0 || at + 22 > tail.length) throw new Error('File is not a zip file')
  const end = {size: view.getUint32(at + 12, true), offset: view.getUint32(at + 16, true), at: from + at, long: 0}
  const here = viewOf(await bytesIn(blob, Math.max(0, end.at - 76), end.at))
  if (here.byteLength < 20 || here.getUint32(here.byteLength - 20, true) !== 0x07064b50) return end
  const locator = here.byteLength - 20
  if (here.getUint32(locator + 4, true) || here.getUint32(locator + 16, true) > 1)
    throw new Error('zipfiles that span multiple disks are not supported')
  if (locator < 56 || here.getUint32(locator - 56, true) !== 0x06064b50) return end
  return {...end, size: long(here, locator - 16), offset: long(here, locator - 8), long: 76}
}

// What an archive says that it holds, as {name, flags, method, crc, packed, size, at}
async function directory(blob) {
  const end = await ending(blob), moved = end.at - end.size - end.offset - end.long, start = end.offset + moved
  if (start < 0) throw new Error('Bad offset for central directory')
  const raw = await bytesIn(blob, start, start + end.size), view = viewOf(raw), found = []
  for (let at = 0; at < end.size;) {
    if (at + 46 > raw.length) throw new Error('Truncated central directory')
    if (view.getUint32(at, true) !== 0x02014b50) throw new Error('Bad magic number for central directory')
    const [named, more, remark] = [28, 30, 32].map(k => view.getUint16(at + k, true)), flags = view.getUint16(at + 8, true)
    const version = raw[at + 6]
    if (version > 63) throw new Error(`zip file version ${(version/10).toFixed(1)}`)
    const full = nameOf(raw.subarray(at + 46, at + 46 + named), flags)
    const e = {full, name: full.split('\0')[0], flags, method: view.getUint16(at + 10, true), crc: view.getUint32(at + 16, true),
      packed: view.getUint32(at + 20, true), size: view.getUint32(at + 24, true), at: view.getUint32(at + 42, true)}
    lengthened(e, raw.subarray(at + 46 + named, at + 46 + named + more))
    found.push({...e, at: e.at + moved})
    at += 46 + named + more + remark
  }
  return found
}

const nameOf = (raw, flags) => flags & 0x800 ? new TextDecoder('utf-8', {fatal: true}).decode(raw)
  : Array.from(raw, v => v < 128 ? String.fromCharCode(v) : CP437[v - 128]).join('')

// Sizes beyond 4 GiB are in an extra field
function lengthened(e, extra) {
  const view = viewOf(extra)
  for (let at = 0; at + 4 <= extra.length;) {
    const kind = view.getUint16(at, true), n = view.getUint16(at + 2, true)
    if (at + 4 + n > extra.length) throw new Error(`Corrupt extra field ${kind.toString(16).padStart(4, '0')} (size=${n})`)
    if (kind === 1) {
      let from = at + 4
      for (const [key, label] of [['size', 'File size'], ['packed', 'Compress size'], ['at', 'Header offset']]) if (e[key] === 0xffffffff) {
        if (from + 8 > at + 4 + n) throw new Error(`Corrupt zip64 extra field. ${label} not found`)
        e[key] = long(view, from)
        from += 8
      }
    }
    at += 4 + n
  }
}

const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ n >>> 1 : n >>> 1
  return n
})
const crcOf = (crc, bytes) => { for (let i = 0; i < bytes.length; i++) crc = CRC[(crc ^ bytes[i]) & 255] ^ crc >>> 8; return crc }

class Enough extends Error {}

// One file of an archive
export class Entry {
  constructor(source, told, path) { Object.assign(this, {source, told, path, name: path.split('/').at(-1), size: told.size, folder: true}) }
  broken(why) {
    return new BadInput(`${this.path}: cannot be unpacked (${why}); copy or download the archive again, or unpack it first`)
  }
  // Its bytes. If `wanted` is false for the first of them, the rest is only checked, and these are returned
  async bytes(wanted = () => true) {
    const {size, packed, method} = this.told, most = method ? Math.min(size, EXPANDS*packed + 64) : size
    let out = null, n = 0, keep = true
    await this.unpack(piece => {
      if (!out) {
        keep = wanted(piece)
        out = new Uint8Array(keep ? most : piece.length)
      }
      if (keep || !n) out.set(piece, n)
      n += piece.length
    })
    return (out ?? new Uint8Array(0)).subarray(0, n)
  }
  async blob() {
    const parts = []
    await this.unpack(piece => parts.push(new Blob([piece])))
    return new Blob(parts)
  }
  // Call `take` with the contents piece by piece; raises BadInput
  async unpack(take) {
    const {source, told: {size, packed, method, crc}} = this
    if (size > LARGEST) throw new BadInput(`${this.path}: unpacks to ${whole(size/2**30)} GiB; check the archive, or unpack it first`)
    let at = await this.start(), left = size, sum = -1, inflate = null
    const give = piece => {
      const part = piece.subarray(0, left)
      left -= part.length
      sum = crcOf(sum, part)
      if (part.length) take(part)
      if (!left) throw new Enough()
    }
    if (method) {
      inflate = new Inflate({raw: true, chunkSize: Math.min(2**20, Math.max(2**12, size))})
      inflate.onData = give
      inflate.onEnd = status => { inflate.failed = status }
    }
    try {
      for (const end = at + packed; at < end && !inflate?.ended;) {
        const raw = await bytesIn(source, at, Math.min(end, at + BLOCK))
        if (!raw.length) throw this.broken('EOFError')
        at += raw.length
        if (!inflate) give(raw)
        else inflate.push(raw, false)
        if (inflate?.failed) throw this.broken(`Error ${inflate.failed} while decompressing data: ${inflate.strm.msg}`)
      }
    } catch (e) { if (!(e instanceof Enough)) throw e }
    if ((sum ^ -1) >>> 0 !== crc) throw this.broken(`Bad CRC-32 for file ${quoted(this.told.name)}`)
  }
  // Where its data begins
  async start() {
    const {source, path, told: {at, flags, method, full}} = this, head = await bytesIn(source, at, at + 30), view = viewOf(head)
    if (flags & 1) throw new BadInput(`${path}: is encrypted; unpack the archive and give the folder`)
    if (head.length < 30) throw this.broken('Truncated file header')
    if (view.getUint32(0, true) !== 0x04034b50) throw this.broken('Bad magic number for file header')
    const named = view.getUint16(26, true), name = await bytesIn(source, at + 30, at + 30 + named)
    if (flags & 32) throw this.broken('compressed patched data (flag bit 5)')
    if (nameOf(name, view.getUint16(6, true)) !== full)
      throw this.broken(`File name in directory ${quoted(full)} and header b${quoted(String.fromCharCode(...name))} differ`)
    if (method === 12 || method === 14)
      throw new BadInput(`${path}: is packed with ${method === 12 ? 'bzip2' : 'LZMA'}, which this page cannot unpack; unpack the archive and give `
                         + 'the folder')
    if (method && method !== 8) throw this.broken('That compression method is not supported')
    return at + 30 + named + view.getUint16(28, true)
  }
}
