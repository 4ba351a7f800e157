"""Series made slice by slice: an oblique MR whose files say nothing of their order."""

import copy
import math
import random

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

ROWS, COLUMNS = 12, 10
SPACING = (0.8, 1.25)
STEP = 2.5
TURN = 0.3
OBLIQUE = (math.cos(TURN), math.sin(TURN), 0.0, 0.0, 0.0, -1.0)


def slice_of(
    place, values, *, orientation=OBLIQUE, origin=(-40.0, 12.5, 60.0), step=STEP, lean=(0.0, 0.0), **attributes
):
    """A single-frame MR whose slice lies `place` steps along the normal, and leans so many mm a step along its axes."""
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    where = np.asarray(origin) + place * (step * np.cross(row, column) + lean[0] * column + lean[1] * row)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "P-77", "Nobody^Ann", "", ""
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.9"
    dataset.StudyID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
    dataset.Modality, dataset.ImageType, dataset.SeriesDescription = "MR", ["ORIGINAL", "PRIMARY", "M"], "AX T1 SE"
    dataset.SeriesNumber, dataset.Manufacturer, dataset.PositionReferenceIndicator = 1, "", ""
    dataset.ImagePositionPatient = [round(float(mm), 6) for mm in where]
    dataset.ImageOrientationPatient = [round(float(cosine), 9) for cosine in orientation]
    dataset.PixelSpacing, dataset.SliceThickness = list(SPACING), step
    dataset.EchoTime, dataset.InstanceNumber = 20.0, 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = values.astype(np.uint16).tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def values_of(depth, seed=0):
    return np.random.default_rng(seed).integers(0, 4000, (depth, ROWS, COLUMNS))


def write(folder, datasets, seed=1):
    """Files whose names and InstanceNumbers say nothing of the order."""
    order = random.Random(seed).sample(range(len(datasets)), len(datasets))
    folder.mkdir(exist_ok=True)
    for number, index in enumerate(order):
        datasets[index].InstanceNumber = number + 1
        datasets[index].save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return sorted(folder.iterdir())


def item(**attributes):
    found = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(found, keyword, value)
    return found


def enhanced(datasets):
    """One Enhanced MR of single frames, as PS3.3 C.7.6.16 lays them out."""
    whole = copy.deepcopy(datasets[0])
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    whole.NumberOfFrames = len(datasets)
    whole.PixelData = b"".join(dataset.PixelData for dataset in datasets)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "EchoTime"):
        delattr(whole, keyword)
    measures = item(PixelSpacing=datasets[0].PixelSpacing, SliceThickness=datasets[0].SliceThickness)
    orientation = item(ImageOrientationPatient=datasets[0].ImageOrientationPatient)
    whole.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
            MREchoSequence=[item(EffectiveEchoTime=one.EchoTime)],
        )
        for one in datasets
    ]
    return whole
