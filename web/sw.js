// Keeps the page Try it for offline visits and sends the headers that allow threads. tests/make_web.py fills in FILES.
const NAME = 'liverseg-try-', VERSION = NAME + '@VERSION@'
const FILES = /*FILES*/[]

// Enforced by the browser: the page can reach no other server
const POLICY = "default-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob: data:; connect-src 'self' blob: data:; form-action 'self'"
const HEADERS = {'Cross-Origin-Opener-Policy': 'same-origin', 'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin', 'Content-Security-Policy': POLICY}

const fresh = path => fetch(new Request(path, {cache: 'no-cache'}))

async function keep() {
  const cache = await caches.open(VERSION)
  await Promise.all(FILES.map(async path => {
    const answer = await fresh(path)
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`)
    await cache.put(new URL(path, registration.scope).href, answer)
  }))
  await skipWaiting()
}

async function clear() {
  for (const name of await caches.keys()) if (name.startsWith(NAME) && name !== VERSION) await caches.delete(name)
  await clients.claim()
}

async function answer(request) {
  const cache = await caches.open(VERSION), page = request.mode === 'navigate' && /\/try(\.html)?$/.test(new URL(request.url).pathname)
  const found = await cache.match(page ? new URL('try.html', registration.scope).href : request, {ignoreSearch: true}) ?? await fetch(request)
  if (found.type === 'opaque' || found.status === 0) return found
  const headers = new Headers(found.headers)
  for (const [key, value] of Object.entries(HEADERS)) headers.set(key, value)
  return new Response(found.body, {status: found.status, statusText: found.statusText, headers})
}

addEventListener('install', event => event.waitUntil(keep()))
addEventListener('activate', event => event.waitUntil(clear()))
addEventListener('fetch', event => {
  if (event.request.method === 'GET' && new URL(event.request.url).origin === location.origin) event.respondWith(answer(event.request))
})
