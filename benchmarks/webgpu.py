"""WebGPU against WASM for the page Try it: is the answer the same, and is it faster? One picture, in Chromium.

    python benchmarks/webgpu.py [--size 256] [--software] [--json benchmarks/study/webgpu.json]

Without a graphics card, `--software` lets Chromium compute WebGPU on the processor (SwiftShader). That shows whether
the answers are equal; its time says nothing about a graphics card.
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copyfile

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'tests')]
RUNS, MOST = 2, 1800 # seconds to wait for one provider
PAGE = """<!DOCTYPE html><title>WebGPU</title><script type="module">
import * as ort from './ort.webgpu.min.mjs'
ort.env.wasm.wasmPaths = new URL('./', location.href).href
ort.env.wasm.numThreads = 1
const bytes = async name => (await fetch(name)).arrayBuffer()
async function measured(provider, side, runs) {
  const raw = new Uint8Array(await bytes('liver.onnx'))
  const session = await ort.InferenceSession.create(raw, {executionProviders: [provider]})
  const x = new Float32Array(await bytes('slice')), seconds = []
  let scores = null
  for (let i = 0; i <= runs; i++) {
    const start = performance.now()
    const answer = await session.run({slices: new ort.Tensor('float32', x, [1, 3, side, side])})
    scores = await answer.scores.getData()
    seconds.push((performance.now() - start)/1000)
  }
  return {seconds: seconds.slice(1), scores: Array.from(scores)}
}
window.begin = (...how) => {
  window.found = null
  measured(...how).then(v => { window.found = v }, e => { window.found = {wrong: String(e)} })
}
window.adapter = async () => {
  const found = await navigator.gpu?.requestAdapter()
  return found && `${found.info.vendor} ${found.info.architecture}`
}
window.ready = true
</script>"""


def write_page(folder, size):
    "The page, the network, one slice as the network sees it, and ONNX Runtime with WebGPU"
    import numpy as np
    from liverseg.phantom import make_subject
    from liverseg.pixels import PixelForm, prepare
    from make_web import WEB, fetch, network
    if why := fetch(): sys.exit(why)
    network(folder)
    meta, who = json.loads((folder / 'model.json').read_text()), make_subject(5, (256, 256, 12))
    upright = lambda a: np.ascontiguousarray(a[::-1, ::-1, 6].T) # the front on top, the patient's right on the left
    seen = np.broadcast_to(prepare([PixelForm.of(meta).as_read(upright(who.hu))], meta)[0], (3, 256, 256))
    top, left = (int(np.clip(c.mean() - size/2, 0, 256 - size)) for c in np.nonzero(upright(who.labels)))
    seen[:, top:top + size, left:left + size].astype(np.float32).tofile(folder / 'slice')
    for name in ('ort.webgpu.min.mjs', 'ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm'):
        copyfile(WEB / 'node_modules/onnxruntime-web/dist' / name, folder / name)
    (folder / 'index.html').write_text(PAGE)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def measure(driver, provider, size):
    "Seconds of each run after the first, and the scores; exits with the reason if there are none"
    driver.execute_script('window.begin(...arguments)', provider, size, RUNS)
    end = time.time() + MOST
    while time.time() < end:
        if found := driver.execute_script('return window.found'):
            if 'wrong' in found: sys.exit(f'{provider}: {found["wrong"]}')
            return found['seconds'], found['scores']
        time.sleep(1)
    sys.exit(f'{provider}: no answer within {MOST} s')


def main():
    import numpy as np
    from conftest import chromium
    parser = argparse.ArgumentParser()
    parser.add_argument('--size', type=int, default=256, help='pixels along the side of the part that is looked at')
    parser.add_argument('--software', action='store_true', help='compute WebGPU on the processor')
    parser.add_argument('--json', help='also write the figures there')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        write_page(Path(tmp), args.size)
        server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=tmp))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        driver = chromium('--enable-unsafe-webgpu', *(['--use-webgpu-adapter=swiftshader'] if args.software else []))
        driver.get(f'http://127.0.0.1:{server.server_port}/index.html')
        while not driver.execute_script('return window.ready'): time.sleep(.1)
        adapter = driver.execute_script('return window.adapter()')
        if not adapter: sys.exit('Chromium finds no WebGPU adapter here')
        (slow, a), (fast, b) = (measure(driver, provider, args.size) for provider in ('wasm', 'webgpu'))
        driver.quit()
        server.shutdown()
    a, b = (np.array(v).reshape(2, -1) for v in (a, b)) # background, liver
    told = dict(adapter=adapter, size=args.size, wasm=round(statistics.median(slow), 3),
                webgpu=round(statistics.median(fast), 3), largest_difference=float(np.abs(a - b).max()),
                liver_pixels=int((a[1] > a[0]).sum()),
                pixels_apart=int(((a[1] > a[0]) != (b[1] > b[0])).sum()), largest_score=float(np.abs(a).max()),
                load=round(os.getloadavg()[0], 1))
    print(told)
    if args.json: Path(args.json).write_text(json.dumps(told, indent=1) + '\n')


if __name__ == '__main__': main()
