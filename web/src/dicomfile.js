// One DICOM file parsed: its data elements by tag, its sequences, the position of its pixels.
import {Inflate} from './vendor/pako.js'
import {BadInput} from './words.js'

const IMPLICIT = '1.2.840.10008.1.2', EXPLICIT = '1.2.840.10008.1.2.1', BIG = '1.2.840.10008.1.2.2'
const DEFLATED = '1.2.840.10008.1.2.1.99'
const LONG = new Set(['OB', 'OD', 'OF', 'OL', 'OV', 'OW', 'SQ', 'SV', 'UC', 'UN', 'UR', 'UT', 'UV'])
const UNDEFINED = 0xffffffff
const HEAD = 2**24 // bytes; more than the header of a CT needs
export const PIXELS = 0x7fe00010

const text = bytes => String.fromCharCode(...bytes.subarray(0, 4096)).replace(/[\0 ]+$/, '').trim()

export const saysDicom = bytes => bytes.length >= 132 && String.fromCharCode(...bytes.subarray(128, 132)) === 'DICM'

// Can these be the first bytes of a DICOM file, perhaps one without `DICM`?
export const mayBeDicom = bytes => saysDicom(bytes) || ['2,0', '8,0', '0,8'].includes(bytes.subarray(0, 2).join())

// The file as {elements: Map of tag to {at, length, bytes}, syntax, meta}; null for what is not DICOM
export function parseDicom(bytes, path) {
  if (!mayBeDicom(bytes)) return null
  const told = saysDicom(bytes), [a] = bytes
  let at = told ? 132 : 0, syntax = ''
  const meta = new Map()
  if (told || a === 2) {
    at = elements(bytes, at, bytes.length, {explicit: true, le: true, until: tag => tag >>> 16 !== 2}, meta)
    syntax = meta.has(0x20010) ? text(meta.get(0x20010).bytes) : ''
  }
  if (syntax === DEFLATED) {
    bytes = unpacked(bytes.subarray(at), path)
    at = 0
  }
  const how = syntax ? {explicit: syntax !== IMPLICIT, le: syntax !== BIG} : guessed(bytes, at)
  const found = new Map()
  elements(bytes, at, bytes.length, how, found)
  const compressed = Boolean(syntax) && ![IMPLICIT, EXPLICIT, BIG, DEFLATED].includes(syntax)
  return {elements: found, meta, le: how.le, syntax, compressed, told}
}

// The deflated part of a file, as far as its header announces; raises BadInput for one that unpacks to more
function unpacked(packed, path) {
  const parts = [], inflate = new Inflate({raw: true, chunkSize: 2**20})
  let n = 0, most = HEAD
  const whole = () => {
    const out = new Uint8Array(n)
    let at = 0
    for (const part of parts) { out.set(part, at); at += part.length }
    return out
  }
  inflate.onData = part => {
    parts.push(part)
    n += part.length
    if (n <= most) return
    if (most === HEAD) most = HEAD + pixelBytes(whole())
    if (n > most)
      throw new BadInput(`${path}: unpacks to more than the pixels that its header announces; it is damaged, export it again`)
  }
  inflate.onEnd = status => { if (status) throw new Error(inflate.strm.msg) }
  inflate.push(packed, false)
  const {strm: {output, next_out}} = inflate
  if (!inflate.ended && next_out < output?.length) inflate.onData(output.subarray(0, next_out)) // of a truncated file
  return whole()
}

// The number of bytes of pixels that the beginning of a file announces
function pixelBytes(bytes) {
  const found = new Map()
  elements(bytes, 0, bytes.length, {explicit: true, le: true, until: tag => tag >>> 16 === 0x7fe0}, found)
  const header = new Header(found, true), short = (tag, other) => header.short(tag, other)
  return short(0x280010, 0)*short(0x280011, 0)*short(0x280002, 1)*(header.number(0x280008, 1) || 1)*short(0x280100, 0)/8
}

// How a file without a meta header is written
function guessed(bytes, at) {
  const le = !(bytes[at] === 0 && bytes[at + 1]), vr = String.fromCharCode(bytes[at + 4], bytes[at + 5])
  return {explicit: /^[A-Z]{2}$/.test(vr), le}
}

// Read elements from `at` to `end` into a map and return where it stopped. A truncated file ends the list
function elements(bytes, at, end, how, into) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), {le, explicit} = how
  while (at + 8 <= end) {
    const tag = view.getUint16(at, le)*65536 + view.getUint16(at + 2, le)
    if (how.until?.(tag)) return at
    if (tag === 0xfffee00d || tag === 0xfffee0dd) return at + 8
    let length, vr = ''
    if (explicit && tag >>> 16 !== 0xfffe) {
      vr = String.fromCharCode(bytes[at + 4], bytes[at + 5])
      if (LONG.has(vr)) {
        if (at + 12 > end) return end
        length = view.getUint32(at + 8, le)
        at += 12
      } else { length = view.getUint16(at + 6, le); at += 8 }
    } else { length = view.getUint32(at + 4, le); at += 8 }
    const items = []
    if (length === UNDEFINED && tag === PIXELS) {
      into.set(tag, {bytes: bytes.subarray(at, end), fragments: true})
      return end
    }
    const sequence = vr === 'SQ' || length === UNDEFINED || !explicit && startsItem(view, at, le, length)
    if (sequence) {
      const inside = vr === 'UN' ? {explicit: false, le: true} : {explicit, le}
      at = sequenceItems(bytes, at, length === UNDEFINED ? end : Math.min(end, at + length), inside, items, length === UNDEFINED)
      into.set(tag, {items, bytes: new Uint8Array(0)})
      continue
    }
    if (at + length > end && tag !== PIXELS) return end
    into.set(tag, {vr, bytes: bytes.subarray(at, Math.min(end, at + length))})
    at += length
  }
  return at
}

const startsItem = (view, at, le, length) => length >= 8 && at + 8 <= view.byteLength
  && view.getUint16(at, le) === 0xfffe && view.getUint16(at + 2, le) === 0xe000

function sequenceItems(bytes, at, end, how, items, open) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length), {le} = how
  while (at + 8 <= end) {
    const tag = view.getUint16(at, le)*65536 + view.getUint16(at + 2, le), length = view.getUint32(at + 4, le)
    at += 8
    if (tag === 0xfffee0dd) return at
    if (tag !== 0xfffee000) return open ? end : at
    const item = new Map()
    if (length === UNDEFINED) at = elements(bytes, at, end, how, item)
    else { elements(bytes, at, Math.min(end, at + length), how, item); at += length }
    items.push(item)
  }
  return end
}

// Values of a map of elements
export class Header {
  constructor(elements, le) { Object.assign(this, {elements, le}) }
  has(tag) { return this.elements.has(tag) }
  text(tag) { return this.has(tag) ? text(this.elements.get(tag).bytes) : '' }
  texts(tag) { return this.text(tag).split('\\').map(s => s.trim()) }
  items(tag) { return this.elements.get(tag)?.items ?? [] }
  short(tag, other) {
    const bytes = this.elements.get(tag)?.bytes
    if (!bytes || bytes.length < 2) return other
    return new DataView(bytes.buffer, bytes.byteOffset).getUint16(0, this.le)
  }
  // A decimal; `other` if the element is empty or missing
  number(tag, other = null) {
    const said = this.text(tag)
    return said === '' ? other : Number(said.split('\\')[0])
  }
  // n decimals; NaN if they are empty or missing
  vector(tag, n) {
    const said = this.text(tag)
    const found = said === '' ? [] : said.split('\\').map(Number)
    return found.length === n ? found : new Array(n).fill(NaN)
  }
}
