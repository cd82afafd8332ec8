// The page: passes the chosen files to the worker and shows its results. Nothing is sent anywhere else.
import {drawSurface} from './solid.js'

const find = name => document.getElementById(`try-${name}`)
const NAMES = ['side', 'front', 'axial'], TITLES = ['Sagittal', 'Coronal', 'Axial'], ENDS = [['left', 'right'], ['back', 'front'], ['feet', 'head']]
const RED = [230, 60, 60], WINDOW = [-150, 250]
const ORDER = [2, 1, 0] // axial first

let worker = null, vol = null, found = null, solid = null, busy = false
const planes = [0, 1, 2].map(axis => ({axis, k: 0, asked: null, shown: null}))

const post = (task, more = {}) => worker.postMessage({task, ...more})

function say(text) { find('status').textContent = text }

function complain(text) {
  find('wrong').textContent = text
  find('wrong').hidden = !text
}

function setBusy(now) {
  busy = now
  for (const name of ['file-button', 'folder-button', 'example', 'thorough']) find(name).disabled = now
  find('cancel').hidden = find('progress').hidden = !now
  document.body.setAttribute('aria-busy', now)
}

// Keep the keyboard where the work is: a button that is disabled or hidden loses the focus
function busyFrom(now, to) {
  const here = document.activeElement, mine = here === document.body || here === find('cancel') || find('choose').contains(here)
  setBusy(now)
  if (mine) find(to).focus({preventScroll: true})
}

function progress(share) {
  const bar = find('progress')
  if (share === null) bar.removeAttribute('value')
  else bar.value = share
}

// Hand files to the worker; `name`: of the folder, or of the file
function take(files, name) {
  if (busy || !worker) return
  complain('')
  vol = found = solid = null
  find('result').hidden = find('views').hidden = true
  busyFrom(true, 'cancel')
  progress(0)
  say(`Reading ${name} …`)
  post('scan', {files, name, thorough: find('thorough').checked})
}

function takeFolder(files) {
  const name = files[0]?.webkitRelativePath.split('/')[0] || 'folder'
  take(packed([...files].map(f => [f, f.webkitRelativePath || f.name])), name)
}

// What loose files are called: one by its name, a pair by that of its header
const nameOf = names => names.length === 1 ? names[0] : names.length === 2 && names.find(n => /\.hdr$/i.test(n)) || 'scan'

// A worker receives files without their paths, so the paths are sent too
const packed = pairs => pairs.map(([file, path]) => ({file, path, folder: path.includes('/')}))

// All files of a dropped entry, as [file, path]
async function below(entry, path = entry.name) {
  if (entry.isFile) return [[await new Promise((go, no) => entry.file(go, no)), path]]
  const reader = entry.createReader(), all = []
  for (;;) {
    const some = await new Promise((go, no) => reader.readEntries(go, no))
    if (!some.length) return all
    for (const e of some) all.push(...await below(e, `${path}/${e.name}`))
  }
}

async function dropped(event) {
  event.preventDefault()
  find('drop').classList.remove('over')
  const entries = [...event.dataTransfer.items].map(i => i.webkitGetAsEntry?.()).filter(Boolean)
  const pairs = (await Promise.all(entries.map(e => below(e)))).flat()
  if (!pairs.length) return
  take(packed(pairs), nameOf(entries.map(e => e.name)))
}

// Ask the worker for a plane that is not shown yet
function askPlane(p) {
  if (!vol || p.asked !== null) return
  p.asked = p.k
  post('plane', {axis: p.axis, k: p.k})
}

function showPlane({axis, k, width, height, hu, mask}) {
  const p = planes[axis]
  p.asked = null
  p.shown = {width, height, hu, mask}
  draw(p)
  if (p.k !== k || p.stale) { p.stale = false; askPlane(p) }
}

function draw({axis, shown}) {
  if (!shown) return
  const canvas = find(NAMES[axis]).querySelector('canvas'), {width, height, hu, mask} = shown
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height})
  const context = canvas.getContext('2d'), picture = context.createImageData(width, height), {data} = picture
  const opacity = find('opacity').value/100, factor = 255/(WINDOW[1] - WINDOW[0])
  for (let i = 0; i < hu.length; i++) {
    const grey = Math.max(0, Math.min(255, (hu[i] - WINDOW[0])*factor)), at = 4*i, inside = mask?.[i]
    const x = i % width, rim = inside && (!mask[i - 1] || !mask[i + 1] || !mask[i - width] || !mask[i + width] || !x || x === width - 1)
    const share = rim ? Math.min(1, opacity*2) : inside ? opacity : 0
    for (let c = 0; c < 3; c++) data[at + c] = grey*(1 - share) + RED[c]*share
    data[at + 3] = 255
  }
  context.putImageData(picture, 0, 0)
}

function describePlane(p) {
  const figure = find(NAMES[p.axis]), n = vol.shape[p.axis]
  const text = `${TITLES[p.axis]} plane, ${p.k + 1} of ${n}`
  figure.querySelector('output').textContent = `${p.k + 1} of ${n}`
  figure.querySelector('canvas').setAttribute('aria-label', `${text}${found ? ', the liver in red' : ''}`)
  figure.querySelector('input').setAttribute('aria-valuetext', `${p.k + 1} of ${n}, from ${ENDS[p.axis].join(' to ')}`)
}

function setPlane(p, k) {
  p.k = Math.max(0, Math.min(vol.shape[p.axis] - 1, Math.round(k)))
  find(NAMES[p.axis]).querySelector('input').value = p.k
  describePlane(p)
  askPlane(p)
}

function showScan({shape, spacing, name, memory}) {
  vol = {shape, spacing, name}
  find('views').hidden = false
  for (const p of planes) {
    const [across, up] = [0, 1, 2].filter(i => i !== p.axis), figure = find(NAMES[p.axis]), range = figure.querySelector('input')
    figure.querySelector('canvas').style.aspectRatio = `${shape[across]*spacing[across]} / ${shape[up]*spacing[up]}`
    range.max = shape[p.axis] - 1
    Object.assign(p, {asked: null, shown: null})
    setPlane(p, Math.floor(shape[p.axis]/2))
  }
  find('memory').textContent = `${shape.join('×')} voxels of ${spacing.map(v => v.toFixed(2)).join('×')} mm; needs about ${memory} of memory`
}

function refresh() {
  for (const p of planes) { if (p.asked === null) askPlane(p); else p.stale = true; describePlane(p) }
  turn()
}

function turn() {
  const canvas = find('solid').querySelector('canvas')
  if (!solid) { canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height); return }
  drawSurface(canvas, solid, Number(find('turn').value), Number(find('tilt').value), RED)
}

function showFound({result, solid: body, most, seconds}) {
  const first = !found
  found = result
  solid = body
  find('result').hidden = false
  find('volume').textContent = !result.liver_found ? 'no liver' : result.volume_ml === null ? 'unknown: the file has no voxel size' : `${result.volume_ml.toFixed(1)} mL`
  find('expected').textContent = result.expected_dice === null ? 'unknown' : `${result.expected_dice.toFixed(2)}, where 1 would be a perfect mask`
  if (seconds !== undefined) find('seconds').textContent = `${result.slices_looked_at} in ${seconds} s`
  find('warnings').replaceChildren(...result.warnings.map(text => Object.assign(document.createElement('li'), {textContent: text})))
  find('nothing-odd').hidden = result.warnings.length > 0
  find('save').disabled = !result.liver_found
  if (first) {
    if (result.liver_found) for (const p of planes) setPlane(p, most[p.axis])
    busyFrom(false, 'heading')
    say(result.liver_found ? `Done. Liver volume: ${find('volume').textContent}.` : 'Done. No liver was found.')
  }
  refresh()
  window.tryResult = result // for tests
}

function keep({name, blob}) {
  const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(blob), download: name})
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
  say(`${name} was saved to your browser's download folder.`)
}

const heard = {
  ready({threads}) {
    find('choose').disabled = false
    find('loading').hidden = true
    find('progress').hidden = true
    document.documentElement.dataset.try = 'ready'
    document.documentElement.dataset.threads = threads
    say(`Ready, with ${threads === 1 ? '1 thread' : `${threads} threads`}. Choose a scan, or try the synthetic example.`)
  },
  reading: ({share}) => progress(share),
  scan: showScan,
  slice({done, of}) {
    progress(done/of)
    say(`Slice ${done} of ${of}`)
  },
  found: showFound,
  plane: showPlane,
  file: keep,
  stopped() {
    busyFrom(false, 'file-button')
    vol = null
    find('views').hidden = true
    say('Cancelled. Choose another scan.')
  },
  wrong({text, task}) {
    if (task === 'scan') busyFrom(false, 'file-button')
    else setBusy(false)
    if (task === 'scan') { vol = null; find('views').hidden = true }
    say('')
    complain(text)
    if (task === 'start') find('loading').hidden = true
  }
}

function listen() {
  find('file').addEventListener('change', ({target}) => {
    const files = [...target.files]
    if (files.length) take(packed(files.map(f => [f, f.name])), nameOf(files.map(f => f.name)))
    target.value = ''
  })
  find('folder').addEventListener('change', ({target}) => { if (target.files.length) takeFolder([...target.files]); target.value = '' })
  for (const name of ['file', 'folder']) find(`${name}-button`).addEventListener('click', () => find(name).click())
  find('example').addEventListener('click', () => take(packed([[example, 'example.nii.gz']]), 'example.nii.gz'))
  find('cancel').addEventListener('click', () => { say('Cancelling …'); post('stop') })
  find('save').addEventListener('click', () => post('save'))
  find('opacity').addEventListener('input', () => planes.forEach(draw))
  find('threshold').addEventListener('input', ({target}) => {
    find('threshold-value').textContent = (target.value/100).toFixed(2)
    post('threshold', {value: target.value/100})
  })
  for (const name of ['turn', 'tilt']) find(name).addEventListener('input', turn)
  for (const p of planes) {
    const figure = find(NAMES[p.axis]), canvas = figure.querySelector('canvas')
    figure.querySelector('input').addEventListener('input', ({target}) => setPlane(p, Number(target.value)))
    canvas.addEventListener('click', event => { // move the other planes to this point
      const [across, up] = [0, 1, 2].filter(i => i !== p.axis), box = canvas.getBoundingClientRect()
      setPlane(planes[across], vol.shape[across]*(1 - (event.clientX - box.left)/box.width))
      setPlane(planes[up], vol.shape[up]*(1 - (event.clientY - box.top)/box.height))
    })
  }
  const body = find('solid').querySelector('canvas')
  body.addEventListener('pointermove', event => {
    if (!event.buttons) return
    find('turn').value = (Number(find('turn').value) + event.movementX + 540) % 360 - 180
    find('tilt').value = Number(find('tilt').value) + event.movementY
    turn()
  })
  const drop = find('drop')
  for (const kind of ['dragenter', 'dragover']) drop.addEventListener(kind, e => { e.preventDefault(); drop.classList.add('over') })
  drop.addEventListener('dragleave', () => drop.classList.remove('over'))
  drop.addEventListener('drop', dropped)
  for (const kind of ['dragover', 'drop']) addEventListener(kind, e => e.preventDefault()) // a file dropped elsewhere must not replace the page
}

// The service worker keeps the page for offline visits and allows threads; the page is reloaded once to use it
async function prepared() {
  if (!('serviceWorker' in navigator) || !isSecureContext) return
  try {
    const registration = await navigator.serviceWorker.register('try-sw.js', {scope: './try'})
    const fresh = registration.installing ?? registration.waiting
    if (fresh && !registration.active) await new Promise((go, no) => fresh.addEventListener('statechange', () => {
      if (fresh.state === 'activated') go()
      if (fresh.state === 'redundant') no(new Error('not installed'))
    }))
    if (!crossOriginIsolated && !sessionStorage.getItem('liverseg-try')) {
      sessionStorage.setItem('liverseg-try', 'once')
      location.reload()
      await new Promise(() => {})
    }
  } catch (e) { console.info(`without a service worker: ${e.message}`) }
}

let example = null

async function begin() {
  listen()
  find('choose').disabled = true
  progress(null)
  await prepared()
  sessionStorage.removeItem('liverseg-try')
  worker = new Worker(new URL('worker.js', import.meta.url), {type: 'module'})
  worker.onmessage = ({data: {is, ...more}}) => heard[is](more)
  worker.onerror = e => heard.wrong({text: `the page: does not work in this browser (${e.message || 'its worker does not start'}); use a `
    + 'current Chromium or Firefox', task: 'start'})
  example = await (await fetch(new URL('example.nii.gz', import.meta.url))).blob()
  const threads = new URLSearchParams(location.search).get('threads')
  post('start', {threads: threads ? Number(threads) : undefined})
}

if (find('choose')) begin()
