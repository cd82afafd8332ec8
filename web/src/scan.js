// What was chosen or dropped, as a volume: one NIfTI file, or the files of a DICOM series.
import {BadInput} from './words.js'
import {readNifti} from './nifti.js'
import {isDicomFile, loadDecoder, readSeries} from './dicom.js'

export {loadDecoder}

// `name`: of the folder, if there is one. Raises BadInput
export async function readScan(files, name, seen) {
  if (!files.length) throw new BadInput(`${name}: is a folder without files; give a NIfTI file, or the folder with the files of `
                                        + 'a CT series')
  if (files.length === 1 && !await isDicomFile(files[0]) && !files[0].folder) {
    if (/\.zip$/i.test(files[0].name)) throw new BadInput(`${files[0].name}: is a zip archive; unpack it and give the folder`)
    return readNifti(files[0], seen)
  }
  const nifti = files.filter(f => /\.nii(\.gz)?$/i.test(f.name)), dicom = await Promise.all(files.slice(0, 4).map(isDicomFile))
  if (nifti.length > 1 && !dicom.some(Boolean))
    throw new BadInput(`${name}: holds ${nifti.length} NIfTI files; give one of them`)
  return readSeries(files, name, seen)
}
