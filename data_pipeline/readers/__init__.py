"""Readers: one file a format; each yields `Record`s and `Fault`s as a stream, and never loses either."""

from data_pipeline.readers.record import Fault, Fields, Record
from data_pipeline.readers.sources import (
    HubSource,
    JsonlSource,
    PackageSource,
    ParquetSource,
    Source,
    TextSource,
    WarcSource,
)

__all__ = [
    "Fault",
    "Fields",
    "HubSource",
    "JsonlSource",
    "PackageSource",
    "ParquetSource",
    "Record",
    "Source",
    "TextSource",
    "WarcSource",
]
