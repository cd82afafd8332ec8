// node ohif.mjs BUNDLE SERIES.json SEG.dcm: for each picture of the series, the labels that OHIF's adapter lays on it, as hexadecimal digits
import fs from 'fs';
import { createRequire } from 'module';
const [bundle, series, seg] = process.argv.slice(2);
globalThis.window = globalThis.self = globalThis;
const element = () => ({ getContext: () => null, style: {}, setAttribute() {}, appendChild() {} });
globalThis.document = { createElement: element, addEventListener() {}, head: element(), body: element(), documentElement: element(), getElementsByTagName: () => [] };
const { adaptersSEG, metaData } = createRequire(import.meta.url)(bundle);
const pictures = JSON.parse(fs.readFileSync(series));
metaData.addProvider((type, id) => pictures.find(p => p.id === id)?.[type], 10000);
const raw = fs.readFileSync(seg);
const found = await adaptersSEG.Cornerstone3D.Segmentation.createFromDICOMSegBuffer(
  pictures.map(p => p.id), raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength), { metadataProvider: metaData });
const labels = found.labelMapImages.flat().map(i => [i.referencedImageId, Buffer.from(i.voxelManager.getScalarData()).toString('hex')]);
console.log(JSON.stringify(Object.fromEntries(labels)));
