// Shared by the modules: the error for a wrong file, and numbers written as Python writes them.

// Bad input: one sentence that names the file, what was found and what to do
export class BadInput extends Error {}

// Cancel was pressed
export class Stopped extends Error {}

export const note = (code, text) => ({code, text})

// The nearest integer, halves to the even one
export function rint(v) {
  const r = Math.round(v)
  return r - v === .5 && r % 2 ? r - 1 : r
}

// A float as Python's `{v:g}` with `digits` digits
export function general(v, digits = 6) {
  if (Number.isNaN(v)) return 'nan'
  if (!Number.isFinite(v)) return v < 0 ? '-inf' : 'inf'
  if (v === 0) return Object.is(v, -0) ? '-0' : '0'
  const [mantissa, power] = v.toExponential(digits - 1).split('e')
  const strip = text => text.includes('.') ? text.replace(/\.?0+$/, '') : text
  if (power < -4 || power >= digits) {
    const size = String(Math.abs(power)).padStart(2, '0')
    return `${strip(mantissa)}e${power < 0 ? '-' : '+'}${size}`
  }
  return strip(v.toFixed(Math.max(0, digits - 1 - Number(power))))
}

// A float as Python's `{v:.0f}`
export const whole = v => (v < 0 && rint(v) === 0 ? '-' : '') + String(rint(v))

// A name in quotes, as Python's `{name!r}` for plain letters
export const quoted = name => name.includes("'") && !name.includes('"') ? `"${name}"` : `'${name.replaceAll("'", "\\'")}'`

// A shape as Python writes a tuple
export const tuple = a => a.length === 1 ? `(${a[0]},)` : `(${[...a].join(', ')})`

// Bytes, easy to read
export const size = bytes => bytes < 1e9 ? `${Math.round(bytes/1e6)} MB` : `${(bytes/1e9).toFixed(1)} GB`
