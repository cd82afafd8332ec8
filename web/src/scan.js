// What was chosen or dropped, as a volume: one NIfTI file, or the files of a DICOM series.
import {BadInput} from './words.js'
import {isZip, pathOf} from './archive.js'
import {readNifti} from './nifti.js'
import {checkNoMask, isDicomFile, readSeries} from './dicom.js'
export {loadDecoder} from './packed.js'

const stem = file => file.name.replace(/\.[^.]*$/, '')
const HALVES = /\.(hdr|img)$/i, OTHERS = /\.(nrrd|nhdr|mha|mhd)$/i

// `name`: of the folder, if there is one. Raises BadInput
export async function readScan(files, name, seen) {
  if (!files.length) throw new BadInput(`${name}: is a folder without files; give a NIfTI file, or the folder with the files of `
                                        + 'a CT series')
  const loose = files.filter(f => !f.folder && !isZip(pathOf(f)))
  if (files.length === 1 && loose.length) {
    if (await isDicomFile(files[0])) await checkNoMask(files[0])
    else return readOne(files[0], seen)
  }
  if (files.length === 2 && loose.length === 2 && loose.every(f => HALVES.test(f.name)) && stem(files[0]) === stem(files[1])) {
    const [header, image] = /\.hdr$/i.test(files[0].name) ? files : [files[1], files[0]]
    if (header.name !== image.name) return readNifti(header, seen, image)
  }
  const nifti = files.filter(f => /\.nii(\.gz)?$/i.test(f.name)), dicom = await Promise.all(files.slice(0, 4).map(isDicomFile))
  if (nifti.length > 1 && !dicom.some(Boolean))
    throw new BadInput(`${name}: holds ${nifti.length} NIfTI files; give one of them`)
  return readSeries(files, name, seen)
}

// One file that is not DICOM
async function readOne(file, seen) {
  const {name} = file
  if (OTHERS.test(name))
    throw new BadInput(`${name}: is NRRD or MetaImage, which this page does not read; convert it to .nii.gz, or use \`liverseg predict\` on the `
                       + 'command line')
  if (/\.img$/i.test(name)) throw new BadInput(`${name}: its header is in ${stem(file)}.hdr, which is not there; choose both files`)
  if (!/\.hdr$/i.test(name)) return readNifti(file, seen)
  return readNifti(file, seen, {missing: `${stem(file)}.img`})
}
