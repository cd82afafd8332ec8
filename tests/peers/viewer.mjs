// In a browser: a series and its SEG as OHIF shows them, with cornerstone's viewports and its adapter. Bundled by test_peers_ohif.py
import * as core from '@cornerstonejs/core';
import * as tools from '@cornerstonejs/tools';
import { adaptersSEG } from '@cornerstonejs/adapters';
const { ViewportType, InterpolationType } = core.Enums, { Labelmap } = tools.Enums.SegmentationRepresentations;
const plain = { voiRange: { lower: 0, upper: 100 }, interpolationType: InterpolationType.NEAREST };
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
let engine = null, ids = [];

// `pictures`: each with its id, the modules of its header and its pixels (int16, base64); `seg`: the file, base64
window.openSeries = async (pictures, seg) => {
  await core.init();
  await tools.init();
  core.metaData.addProvider((type, id) => pictures.find(p => p.id === id)?.[type], 10000);
  for (const { id, pixels, imagePlaneModule: plane } of pictures) {
    const image = core.imageLoader.createAndCacheLocalImage(id, { scalarData: new Int16Array(bytes(pixels).buffer), dimensions: [plane.columns, plane.rows],
      origin: plane.imagePositionPatient, spacing: [...plane.pixelSpacing].reverse(), direction: [...plane.imageOrientationPatient, 0, 0, 1] });
    Object.assign(image, { windowCenter: 50, windowWidth: 100 });
  }
  ids = pictures.map(p => p.id);
  const { labelMapImages } = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(ids, bytes(seg).buffer, { metadataProvider: core.metaData });
  const imageIds = labelMapImages.flat().map(i => i.imageId);
  tools.segmentation.addSegmentations([{ segmentationId: 'liver', representation: { type: Labelmap, data: { imageIds } } }]);
  tools.segmentation.config.style.setStyle({ type: Labelmap }, { renderOutline: false, renderFill: true, fillAlpha: .5 });
  engine = new core.RenderingEngine('engine');
};

function enabled(name, type) {
  const element = document.body.appendChild(document.createElement('div'));
  element.style.cssText = 'width: 400px; height: 400px';
  engine.enableElement({ viewportId: name, type, element, defaultOptions: { background: [0, 0, 0] } });
  return engine.getViewport(name);
}

async function coloured(name) {
  await tools.segmentation.addLabelmapRepresentationToViewport(name, [{ segmentationId: 'liver' }]);
  tools.segmentation.config.color.setSegmentIndexColor(name, 'liver', 1, [255, 0, 0, 255]);
}

async function drawn(viewport) {
  viewport.render();
  await new Promise(go => setTimeout(go, 400));
  const canvas = viewport.getCanvas();
  return canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
}

// For each picture of the stack: how many points of the screen are bright in the scan, how many in colour, and in how many away
// from the edges of what is bright the two differ
window.showStack = async () => {
  const viewport = enabled('stack', ViewportType.STACK), found = [];
  await viewport.setStack(ids, 0);
  await coloured('stack');
  for (let k = 0; k < ids.length; k++) {
    await viewport.setImageIdIndex(k);
    viewport.setProperties(plain);
    const data = await drawn(viewport), { width, height } = viewport.getCanvas(), n = { bright: 0, red: 0, far: 0 };
    const red = at => Number(data[4*at] > data[4*at + 1] + 40), bright = at => Number(data[4*at + 1] > 60);
    for (let y = 1; y < height - 1; y++) for (let x = 1; x < width - 1; x++) {
      const at = y*width + x;
      n.red += red(at); n.bright += bright(at);
      if (red(at) === bright(at)) continue;
      let near = 0; // bright points of the nine here: none or all of them are no edge
      for (const dy of [-width, 0, width]) for (const dx of [-1, 0, 1]) near += bright(at + dy + dx);
      n.far += near % 9 === 0;
    }
    found.push(n);
  }
  return found;
};

// The same as a volume, cut in three directions: some points of each screen as x, y, z in the patient (mm) and 1 if they are in colour
window.showVolume = async () => {
  const viewport = enabled('volume', ViewportType.ORTHOGRAPHIC), found = {};
  await core.volumeLoader.createAndCacheVolumeFromImages('ct', ids);
  await viewport.setVolumes([{ volumeId: 'ct' }]);
  await coloured('volume');
  for (const name of ['axial', 'coronal', 'sagittal']) {
    viewport.setOrientation(name);
    const data = await drawn(viewport), { width, height } = viewport.getCanvas(), scale = width/viewport.getCanvas().clientWidth;
    found[name] = [];
    for (let y = 2; y < height; y += 4) for (let x = 2; x < width; x += 4) {
      const at = 4*(y*width + x), place = viewport.canvasToWorld([(x + .5)/scale, (y + .5)/scale]);
      found[name].push([...place.map(v => Math.round(v*1000)/1000), Number(data[at] > data[at + 1] + 40)]);
    }
  }
  return found;
};
