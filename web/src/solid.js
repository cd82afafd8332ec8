// The liver as a body that can be turned: the points of its surface and how to draw them, without WebGL.
import {beside} from './volume.js'
import {maskBox, part, walk} from './check.js'

const MOST = 110 // points along the longest axis

// Points in mm about the middle, and their normals, as [x, y, z, nx, ny, nz, …]; null without a mask
export function surface(vol, maskData) {
  const mask = beside(vol, maskData), box = maskBox(mask)
  if (!box) return null
  const lengths = box.map(([low, high], i) => (high - low)*vol.spacing[i]), cell = Math.max(...lengths)/MOST
  const steps = vol.spacing.map(s => Math.max(1, Math.round(cell/s))), thin = part(mask, box, steps)
  const [nx, ny, nz] = thin.shape.map(n => n + 2), there = new Uint8Array(nx*ny*nz)
  walk(thin, (v, x, y, z) => { there[((z + 1)*ny + y + 1)*nx + x + 1] = v ? 1 : 0 })
  const at = (x, y, z) => x < 0 || y < 0 || z < 0 || x >= nx || y >= ny || z >= nz ? 0 : there[(z*ny + y)*nx + x]
  const out = [], pitch = steps.map((s, i) => s*vol.spacing[i])
  for (let z = 1; z < nz - 1; z++) for (let y = 1; y < ny - 1; y++) for (let x = 1; x < nx - 1; x++) {
    if (!at(x, y, z) || at(x - 1, y, z) && at(x + 1, y, z) && at(x, y - 1, z) && at(x, y + 1, z) && at(x, y, z - 1) && at(x, y, z + 1)) continue
    const slope = [0, 0, 0]
    for (let c = -2; c < 3; c++) for (let b = -2; b < 3; b++) for (let a = -2; a < 3; a++)
      if (at(x + a, y + b, z + c)) { slope[0] -= a; slope[1] -= b; slope[2] -= c }
    const normal = slope.map((v, i) => v/pitch[i]), size = Math.hypot(...normal) || 1
    out.push(...[x, y, z].map((v, i) => (v - (thin.shape[i] + 1)/2)*pitch[i]), ...normal.map(v => v/size))
  }
  return {points: Float32Array.from(out), reach: Math.hypot(...lengths)/2, pitch: Math.max(...pitch)}
}

// Draw such a surface, turned about the axis from feet to head and tilted, in degrees; seen from the front, head up
export function drawSurface(canvas, {points, reach, pitch}, turn, tilt, colour) {
  const {width: w, height: h} = canvas, context = canvas.getContext('2d'), picture = context.createImageData(w, h)
  const scale = Math.min(w, h)/2/reach*.95, depth = new Float32Array(w*h).fill(Infinity)
  const [a, b] = [turn, tilt].map(v => v*Math.PI/180), [ca, sa, cb, sb] = [Math.cos(a), Math.sin(a), Math.cos(b), Math.sin(b)]
  const spun = (x, y, z) => { // to the right of the picture, away from the viewer, up; the patient's right is on the left
    const u = -(ca*x - sa*y), v = -(sa*x + ca*y)
    return [u, cb*v + sb*z, cb*z - sb*v]
  }
  const dot = Math.max(1, Math.ceil(pitch*scale*1.1))
  for (let i = 0; i < points.length; i += 6) {
    const [u, v, up] = spun(points[i], points[i + 1], points[i + 2])
    const [nu, nv, nup] = spun(points[i + 3], points[i + 4], points[i + 5])
    const light = .25 + .75*Math.max(0, -.75*nv + .45*nup - .3*nu)
    const x0 = Math.round(w/2 + u*scale - dot/2), y0 = Math.round(h/2 - up*scale - dot/2)
    for (let y = Math.max(0, y0); y <= Math.min(h - 1, y0 + dot); y++) for (let x = Math.max(0, x0); x <= Math.min(w - 1, x0 + dot); x++) {
      const at = y*w + x
      if (v >= depth[at]) continue
      depth[at] = v
      for (let c = 0; c < 3; c++) picture.data[4*at + c] = colour[c]*light
      picture.data[4*at + 3] = 255
    }
  }
  context.putImageData(picture, 0, 0)
}
