"""Attributes that Table E.1-1 does not name and de-identification still has an opinion on."""

from __future__ import annotations

import re

from pydicom.errors import BytesLengthException

from hscc_edge.data.dicom import FAULTS

# what reading or writing a malformed element can raise
MALFORMED = (*FAULTS, BytesLengthException)

# Text that a machine writes of itself or of its technique; every other text outside the table goes.
_TECHNICAL = (
    "Manufacturer ManufacturerModelName SoftwareVersions MappingResourceName SecondaryCaptureDeviceManufacturer "
    "SecondaryCaptureDeviceManufacturerModelName SecondaryCaptureDeviceSoftwareVersions DigitalImageFormatAcquired "
    "ContrastBolusRoute TriggerSourceOrType CardiacFramingType Radiopharmaceutical RadiopharmaceuticalRoute "
    "PVCRejection TypeOfFilters AcquisitionMode DoseModeName PhosphorType AcquisitionDeviceProcessingCode "
    "ProcessingFunction DetectorManufacturerName DetectorManufacturerModelName ReceiveCoilManufacturerName "
    "PositionReferenceIndicator DimensionIndexPrivateCreator FunctionalGroupPrivateCreator RescaleType "
    "WindowCenterWidthExplanation LUTExplanation ModalityLUTType SegmentAlgorithmName AlgorithmName AlgorithmVersion "
    "AttenuationCorrectionMethod ReconstructionMethod DetectorLinesOfResponseUsed ScatterCorrectionMethod "
    "ApplicableSafetyStandardDescription MIMETypeOfEncapsulatedDocument SequenceName ImagedNucleus "
    "VideoImageFormatAcquired FilterType CollimatorGridName ConvolutionKernel ReceiveCoilName TransmitCoilName "
    "PlateType TimeSource StackID PulseSequenceName MultiCoilElementName ImageFilter ViewName OpticalPathIdentifier "
    "ReferencedOpticalPathIdentifier"
)
TECHNICAL = frozenset(_TECHNICAL.split())
_BULK = (
    "PixelData FloatPixelData DoubleFloatPixelData ExtendedOffsetTable ExtendedOffsetTableLengths WaveformData "
    "LUTData ChannelMinimumValue ChannelMaximumValue WaveformPaddingValue SpectroscopyData "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData "
    "AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData "
    "SegmentedAlphaPaletteColorLookupTableData"
)
BULK = frozenset(_BULK.split())
# Signatures and ciphertexts are of the original; what an attribute was before is what the profile removes.
_GONE = (
    "EncryptedAttributesSequence OriginalAttributesSequence ModifiedAttributesSequence MACParametersSequence "
    "DigitalSignaturesSequence DeidentificationMethod DeidentificationMethodCodeSequence PatientIdentityRemoved "
    "LongitudinalTemporalInformationModified"
)
GONE = frozenset(_GONE.split())
NUMBERS = frozenset(["DS", "IS", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV", "AT"])
BINARY = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
SHAPES = {"CS": re.compile(r"[A-Z0-9 _]{0,16}"), "AS": re.compile(r"\d{3}[DWMY]")}
# which UIDs say what kind of object or encoding it is
KEPT_UIDS = frozenset(["SOPClassUID"])
# PS3.15 E.3.4
_STRUCTURED = "AcquisitionContextSequence ContentSequence SpecimenPreparationSequence WaveformAnnotationSequence"
STRUCTURED = frozenset(_STRUCTURED.split())
