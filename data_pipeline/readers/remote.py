"""Remote source files through fsspec: listed by pattern, fetched once.

A file is fetched whole, as an artifact of the stage `fetch`, not streamed: a stage's key is made
of its inputs' digests, so all bytes must have been seen before the first is read; a Parquet file or an archive is read
from its end; and what a digest was taken of must be what is read, whatever the server does in between. Price: the root
holds a copy (`assay` finds it again as long as the server says that the file is the same); memory one block.

The server says so by an ETag, a check sum, a generation or a time of change, which enter the artifact's key with the
size; of a file without any of these nothing is assumed, it is fetched and hashed again by every run.

Credentials are those of the environment, as fsspec's packages find them. Queries and passwords of URLs, which may hold
secrets, are kept out of names and manifests; a hash replaces them. `file://` is a path of this machine and is read
in place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from data_pipeline.readers.streams import BLOCK_BYTES
from governance.config import Section
from governance.errors import ConfigError, MissingInput, PipelineError
from governance.files import atomic_file, place, sha256_bytes, sha256_file
from governance.log import progress
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, ShareDone, run_stage

VERSION = 1
HUB_SCHEME = "hf://"

_VALIDATORS = (
    "ETag", "etag", "Content-MD5", "content_md5", "Digest", "checksum", "md5", "md5Hash", "crc32c", "generation",
    "VersionId", "blob_id", "mtime", "modified", "Last-Modified", "LastModified", "last_modified",
)  # fmt: skip
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs",
    "http": "aiohttp requests", "https": "aiohttp requests", "sftp": "paramiko", "ssh": "paramiko",
    "smb": "smbprotocol",
}  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL."""

    name: str
    """Its name within the source."""
    url: str


class RemoteIdentity(Section):
    """Recipe of a fetch: the bytes, as far as known before."""

    url: str
    """Without query and password."""
    secret_sha256: str
    """Digest of the URL's query and password; "" where it has none."""
    facts: tuple[str, ...]
    """The server's facts about the file, `name=value`; without any, the SHA-256 of the content."""


def is_url(pattern: str) -> bool:
    """Return whether a pattern names files through fsspec.

    `file://` is a path of this machine.
    """
    return "://" in pattern and not pattern.startswith("file://")


def find_remote(patterns: tuple[str, ...], source: str) -> list[RemoteFile]:
    """Files that the URLs match, once each, sorted by name.

    Raises:
        ConfigError: paths and URLs, or URLs of two kinds, in one source; or two files of one name.
        MissingInput: a URL names no file, cannot be reached, or needs a package that is not installed.
    """
    schemes = sorted({pattern.partition("://")[0] if is_url(pattern) else "" for pattern in patterns})
    if len(schemes) > 1:
        kinds = " and ".join(f"{scheme}://" if scheme else "paths of this machine" for scheme in schemes)
        raise ConfigError(f"source {source}: `paths` mixes {kinds}. Make a source of each kind.")
    found: dict[str, str] = {}
    listed = [_listed(pattern, source) for pattern in patterns]
    shared = os.path.commonpath([fixed for fixed, _ in listed])
    for _, urls in listed:
        for path, url in urls:
            name = os.path.relpath(path, shared or "/" * path.startswith("/"))
            if found.setdefault(name, url) != url:
                raise ConfigError(f"source {source}: two URLs are of the file {name!r}. Make two sources of them.")
    return [RemoteFile(name, found[name]) for name in sorted(found)]


def _listed(pattern: str, source: str) -> tuple[str, list[tuple[str, str]]]:
    """Fixed folder of a pattern, and each file's path and URL."""
    with _explained(pattern, source):
        system, path = file_system(pattern)
        web = pattern.startswith(("http://", "https://"))
        wild = "*[" if web else "*?["  # a URL's query starts with a question mark
        if not any(sign in path for sign in wild):
            # `isfile` is False also where the hub refuses; `info` raises the reason.
            hub = pattern.startswith(HUB_SCHEME)
            there = web or (system.info(path)["type"] == "file" if hub else system.isfile(path))
            paths = [path] if there else []
        else:
            paths = sorted(name for name, about in system.glob(path, detail=True).items() if about["type"] == "file")
        if not paths:
            raise MissingInput(f"source {source}: {public_url(pattern)!r} names no file. Correct its `paths`.")
        fixed: list[str] = []
        for part in PurePosixPath(_plain(path)).parent.parts:
            if any(sign in part for sign in wild):
                break
            fixed.append(part)
        return os.path.join(*fixed) if fixed else "", [(_plain(name), system.unstrip_protocol(name)) for name in paths]


def fetch_remote(file: RemoteFile, source: str, runtime: Runtime) -> Manifest:
    """Make or find the copy of a file, as `<root>/fetch/<key>/file/<its name>`.

    Raises:
        MissingInput: it cannot be fetched whole; or it is missing and `runtime.make` is off.
        ShareDone: it is missing, or has to be read again, and this is a share.
    """
    with _explained(file.url, source):
        facts = _facts(file.url)
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / "file"
        if len(facts) < 2:  # a size alone proves nothing
            if runtime.mode == "share":
                raise ShareDone(
                    "fetch", f"{public_url(file.url)}: its server does not say which version it is; a join reads it"
                )
            _copy(file, source, fetched)
            facts = (f"sha256={sha256_file(fetched)}",)
        public = public_url(file.url)
        hidden = "" if public == file.url else sha256_bytes(file.url.encode("utf-8"))
        identity = RemoteIdentity(url=public, secret_sha256=hidden, facts=facts)

        def make(folder: Path) -> Made:
            target = folder / "file" / PurePosixPath(file.name).name
            if fetched.exists():
                place(fetched, target)
            else:
                _copy(file, source, target)
                with _explained(file.url, source):
                    now = _facts(file.url)
                if now != facts:
                    raise MissingInput(f"source {source}: {public} was changed while it was fetched. Run it again.")
            output = describe(target, runtime.root)
            return Made([output], {"bytes": output.bytes})

        return run_stage(Recipe("fetch", VERSION, identity), (), runtime, make, alone=True)


def _facts(url: str) -> tuple[str, ...]:
    """Size and version facts of a remote file, sorted."""
    system, path = file_system(url)
    system.invalidate_cache()
    about = system.info(path)
    known = [f"{name}={about[name]}" for name in _VALIDATORS if about.get(name) is not None]
    return tuple(sorted([*known, f"size={about.get('size')}"]))


def _copy(file: RemoteFile, source: str, target: Path) -> None:
    with atomic_file(target) as out:
        for block in _blocks(file.url, source):
            out.write(block)


def _blocks(url: str, source: str) -> Iterator[bytes]:
    """The bytes of a file.

    It is an error if they are fewer than the server states.
    """
    with _explained(url, source):
        system, path = file_system(url)
        size, came = system.info(path).get("size"), 0
        name = f"fetch {PurePosixPath(urlsplit(public_url(url)).path).name}"
        shown = progress(name, size / 1e6, "MB") if size else nullcontext(_silent)
        with system.open(path, "rb", cache_type="readahead") as stream, shown as advance:
            while block := stream.read(BLOCK_BYTES):
                came += len(block)
                advance(len(block) / 1e6)
                yield block
        if size is not None and came != size:
            raise MissingInput(f"source {source}: {public_url(url)} gave {came} of {size} bytes. Run it again.")


def _silent(amount: float) -> None:
    """Progress towards an unknown size."""


@contextmanager
def _explained(url: str, source: str) -> Iterator[None]:
    """Turn file system exceptions into our errors."""
    scheme = url.partition("://")[0]
    try:
        yield
    except PipelineError:
        raise
    except ImportError as error:
        package = _PACKAGES.get(scheme, "")
        fix = f"Install it: pip install {package}" if package else "Install the package that it names."
        raise MissingInput(
            f"source {source}: {scheme}:// needs a package that is not installed ({error}). {fix}"
        ) from error
    except Exception as error:
        if isinstance(error, ValueError) and "Protocol not known" in str(error):
            raise ConfigError(
                f"source {source}: {public_url(url)!r}: fsspec has no {scheme}://. Correct the URL."
            ) from error
        said = f"{type(error).__name__}: {error}".splitlines()[0].replace(url, public_url(url))
        raise MissingInput(
            f"source {source}: {public_url(url)} cannot be read ({said}). Correct its `paths`, the network, or the "
            "credentials in the environment."
        ) from error


def _plain(path: str) -> str:
    """A path without query, as names are made of it."""
    return urlsplit(path).path if path.startswith(("http://", "https://")) else path


def public_url(url: str) -> str:
    """A URL without query and password."""
    if not url.startswith(("http://", "https://")):
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2] if '@' in rest.partition('/')[0] else rest}"
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def file_system(url: str) -> tuple[Any, str]:
    """File system of a URL, and the path within it."""
    import fsspec

    options = {"endpoint": os.environ.get("HF_ENDPOINT")} if url.startswith(HUB_SCHEME) else {}
    found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    return found
