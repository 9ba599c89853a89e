"""Origin of a document by its URL: host, year, country, cluster bucket.

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

BUCKETS = 64
UNKNOWN = "unknown"
SMALL_SITES = "(small sites)"
"""The site of a document of a host beyond the largest: too few documents to compare it with itself."""

_HOST = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^/?#:]*)")
_YEAR = re.compile(r"(?:^|[/_.-])(199\d|20[0-4]\d)(?=$|[/_.-])")
_COUNTRY = re.compile(r"\.([a-z]{2})$")


@functools.lru_cache(maxsize=1 << 16)
def host_of(url: str) -> str:
    """The host in lower case, without "www."; "" for what has none."""
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
