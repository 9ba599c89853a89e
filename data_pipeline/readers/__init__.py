"""Readers: one file a format; each yields `Record`s and `Fault`s as a stream, and never loses either."""

from data_pipeline.readers.record import Fault, Fields, Record
from data_pipeline.readers.sources import HubSource, JsonlSource, PackageSource, Source, TextSource

__all__ = ["Fault", "Fields", "HubSource", "JsonlSource", "PackageSource", "Record", "Source", "TextSource"]
