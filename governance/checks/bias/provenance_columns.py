"""Facts of documents, and their origin by URL: host, year, country, cluster.

The *cluster* of a document is the host of its URL, or the document itself where it has none: pages of one site are
written by the same hands and are not independent, so resampling takes a site as a whole (Cameron and Miller 2015,
"A Practitioner's Guide to Cluster-Robust Inference", J. Human Resources 50(2)). Clusters fall into 64 buckets by the
CRC-32 of their name, which is the same on every machine.

Limits. A host is not a publisher, a country's domain (`.tv`, `.io`) is not always used from that country, and the year
in a path is when a page was filed, not written.
"""

from __future__ import annotations

import functools
import re
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from governance.checks.bias.statistics import BUCKETS, Integers

UNKNOWN = "unknown"
SMALL_SITES = "(small sites)"
"""The site of a document of a host beyond the largest: too few documents to compare it with itself."""

_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^/?#:]*)")
_YEAR = re.compile(r"(?:^|[/_.-])(199\d|20[0-4]\d)(?=$|[/_.-])")
_COUNTRY = re.compile(r"\.([a-z]{2})$")


@functools.lru_cache(maxsize=1 << 16)
def host_of(url: str) -> str:
    """The host in lower case, without "www."; "" if there is none."""
    match = _HOST.match(url.strip())
    return match[1].lower().rstrip(".").removeprefix("www.") if match else ""


def year_of(url: str) -> str:
    """First year from 1990 to 2049 in the path, or "unknown"."""
    path = url.partition("://")[2].partition("/")[2].partition("?")[0].partition("#")[0]
    match = _YEAR.search(path)
    return match[1] if match else UNKNOWN


def country_of(host: str) -> str:
    """The country code at the host's end, or "unknown"."""
    match = _COUNTRY.search(host)
    return match[1] if match else UNKNOWN


def bucket_of(cluster: str) -> int:
    """Bucket (of 64) of a cluster."""
    return zlib.crc32(cluster.encode("utf-8")) % BUCKETS


@dataclass(frozen=True)
class Facts:
    """Facts of each document of a row group."""

    ids: list[str]
    languages: npt.NDArray[np.object_]
    buckets: Integers
    sizes: Integers
    """Bytes of the stored text."""
    reasons: list[str]
    """"" for documents that stayed."""
    sources: list[str]
    urls: list[str]
    hosts: list[str]
    licences: list[str]


def facts_of(group: pa.Table) -> Facts:
    """Facts of the documents of a row group."""
    urls = group["url"].to_pylist()
    hosts = [host_of(url) for url in urls]
    ids = group["id"].to_pylist()
    clusters = [host or name for host, name in zip(hosts, ids, strict=True)]
    return Facts(
        ids=ids,
        languages=np.array([code or "und" for code in group["language"].to_pylist()], object),
        buckets=np.array([bucket_of(cluster) for cluster in clusters], np.int64),
        sizes=pc.binary_length(group["text"]).to_numpy().astype(np.int64),
        reasons=group["reason"].to_pylist() if "reason" in group.column_names else [""] * len(group),
        sources=group["source"].to_pylist(),
        urls=urls,
        hosts=hosts,
        licences=group["licence"].to_pylist(),
    )
