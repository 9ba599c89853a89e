"""Packages of PyPI and Debian as text sources; nothing is installed.

An archive is an artifact of the stage `fetch`, keyed by what identifies it (index, name, version, digest, kind), so a
renamed source or another pattern does not fetch again. PyPI: `pip download --require-hashes`, so that pip compares
the digest before it opens the archive (for an sdist pip then runs its build script for metadata: the script of that
very archive). Debian: `apt-get download`, which verifies against the signed index. Which index they use is their own
configuration.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from data_pipeline.readers.sources import PackageSource
from governance.config import Section
from governance.errors import ManifestError, MissingInput
from governance.files import atomic_path, sha256_file, write_text
from governance.manifest import Manifest, describe
from governance.stage import Made, Recipe, Runtime, run_stage

VERSION = 1

_UNREACHABLE = re.compile(
    r"Retrying \(|ConnectionError|NewConnectionError|Could not resolve|Failed to fetch|Connection refused|"
    r"Temporary failure|Could not connect|timed out",
    re.IGNORECASE,
)
_PIP_DIGESTS = re.compile(r"Expected (?:sha256 )?([0-9a-f]{64}).*?Got\s+([0-9a-f]{64})", re.DOTALL)


class PackageIdentity(Section):
    """Recipe of a fetch: everything that decides which archive it is."""

    index: Literal["pypi", "debian"]
    package: str
    version: str
    sha256: str
    archive: Literal["wheel", "sdist"]


def fetch(source: PackageSource, runtime: Runtime) -> Manifest:
    """Make or find the archive of a package, as `<root>/fetch/<key>/archive/<file>`.

    Raises:
        MissingInput: the index cannot be reached, has no such release, or its client is not on this machine.
        ManifestError: the archive has another digest than the source pins.
    """
    identity = PackageIdentity(
        index=source.index,
        package=source.package,
        version=source.version,
        sha256=source.sha256,
        archive=source.archive if source.index == "pypi" else "wheel",
    )

    def make(folder: Path) -> Made:
        with tempfile.TemporaryDirectory() as name:
            client = _from_pypi if identity.index == "pypi" else _from_debian
            found = client(identity, Path(name))
            # Compared here too: whatever a client does, nothing else is ever read.
            if identity.sha256 and (digest := sha256_file(found)) != identity.sha256:
                raise _mismatch(identity, digest)
            target = folder / "archive" / found.name
            with atomic_path(target) as temporary:
                shutil.copyfile(found, temporary)
        output = describe(target, runtime.root)
        return Made([output], {"bytes": output.bytes})

    return run_stage(Recipe("fetch", VERSION, identity), (), runtime, make, alone=True)


def _mismatch(identity: PackageIdentity, found: str) -> ManifestError:
    return ManifestError(
        f"{identity.package} {identity.version}: the {identity.index} archive has sha256 {found}, the source pins "
        f"{identity.sha256}. Either the index serves another file than was reviewed, or the pin is of another archive "
        f"of the release (archive = {identity.archive!r}); find out which before you change sha256."
    )


def _from_pypi(identity: PackageIdentity, folder: Path) -> Path:
    pinned = f"{identity.package}=={identity.version} --hash=sha256:{identity.sha256}\n"
    write_text(folder / "requirements.txt", pinned)
    kind = "--only-binary" if identity.archive == "wheel" else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", kind, ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", "archive", "-r", "requirements.txt"]
    words = _ask(command, folder, identity)
    if words and (digests := _PIP_DIGESTS.search(words)):
        raise _mismatch(identity, digests.group(2))
    if words and "No module named pip" in words:
        raise MissingInput(f"{identity.package}: this Python has no pip. Install it: {sys.executable} -m ensurepip")
    return _only_file(folder / "archive", identity, words)


def _from_debian(identity: PackageIdentity, folder: Path) -> Path:
    if shutil.which("apt-get") is None:
        raise MissingInput(
            f"{identity.package}: this machine has no apt-get, so packages of Debian cannot be fetched. Run it on a "
            "Debian or Ubuntu machine and copy the root, or leave the source out."
        )
    (folder / "archive").mkdir()
    name = f"{identity.package}={identity.version}" if identity.version else identity.package
    return _only_file(folder / "archive", identity, _ask(["apt-get", "download", name], folder / "archive", identity))


def _ask(command: list[str], folder: Path, identity: PackageIdentity) -> str:
    """Run a client.

    Return its output when it failed, else "".
    """
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MissingInput(f"{identity.package}: cannot run {command[0]}: {error.strerror}") from error
    return "" if done.returncode == 0 else f"{done.stdout}\n{done.stderr}"


def _only_file(folder: Path, identity: PackageIdentity, words: str) -> Path:
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if len(found) == 1 and not words:
        return found[0]
    release = f"{identity.package} {identity.version}".strip()
    client = "pip" if identity.index == "pypi" else "apt-get"
    said = [line.strip() for line in words.splitlines() if line.startswith(("ERROR", "E:", "WARNING", "W:"))]
    if _UNREACHABLE.search(words):
        what = f"the package index cannot be reached, so {release} cannot be fetched. Check the network, or {client}'s"
        what += " configuration (a mirror), or copy a root that has it (nodes of a cluster: submit with --fetch)"
    else:
        what = (
            f"{client} cannot fetch {release} ({identity.archive if client == 'pip' else 'deb'}). Correct package and"
        )
        what += " version" + ("" if client == "pip" else ", or run apt-get update")
    raise MissingInput(f"{what}; {client} says:\n  " + "\n  ".join(said[-4:] or words.strip().splitlines()[-4:]))
