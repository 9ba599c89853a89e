"""HTML pages of Debian's documentation packages, fetched by apt: real pages that nobody tuned a rule on.

Packages come in the order of a hash of their names, so that nobody chose them; one for each source package, and no
more than `MAX_PAGES_PER_PACKAGE` pages of it, again in the order of a hash. The set depends on the release of Debian.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PAGES = 20_000
MAX_PAGES_PER_PACKAGE = 80
PACKAGE_BYTES = (150_000, 6_000_000)
PAGE_BYTES = (2_000, 40_000)
SEEN = frozenset({"debian-handbook", "postgresql-17", "libreoffice"})
"""Source packages whose pages are in the test data."""
_BATCH = 60


def pages(folder: Path, count: int) -> list[Path]:
    """At least so many pages below `folder`, in the order of their packages; what is there is not fetched again.

    Raises:
        FileNotFoundError: this machine has no `apt-get`, or too few pages can be fetched.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise FileNotFoundError("pages come from Debian's packages: this machine has no apt-get and dpkg-deb")
    found: list[Path] = []
    packages = _packages()
    for start in range(0, len(packages), _BATCH):
        batch = packages[start : start + _BATCH]
        _fetch(batch, folder)
        for package in batch:
            found += sorted((folder / package).glob("*.html"))
            if len(found) >= count:
                return found
    raise FileNotFoundError(f"Debian's packages have {len(found)} pages, not {count}; run apt-get update")


def _packages() -> list[str]:
    """Names in the order of a hash, the first of each source package."""
    said = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, text=True).stdout
    chosen: dict[str, tuple[str, str]] = {}
    for stanza in said.split("\n\n"):
        lines = [line.split(": ", 1) for line in stanza.split("\n") if ": " in line and not line.startswith(" ")]
        fields = {name: value for name, value in lines}
        name = fields.get("Package", "")
        source = fields.get("Source", name).split(" ")[0]
        if not name.endswith("-doc") or source in SEEN:
            continue
        if not PACKAGE_BYTES[0] <= int(fields.get("Size", 0)) <= PACKAGE_BYTES[1]:
            continue
        place = (_hash(name), name)
        chosen[source] = min(chosen.get(source, place), place)
    return [name for _, name in sorted(chosen.values())]


def _fetch(packages: Sequence[str], folder: Path) -> None:
    """Unpack the pages of packages that are not there; a package that cannot be had counts as one without pages."""
    missing = [name for name in packages if not (folder / name).is_dir()]
    if not missing:
        return
    archives = folder / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    said = subprocess.run(
        ["apt-get", "download", "-qq", *missing], cwd=archives, check=False, capture_output=True, text=True
    )
    if not any(archives.iterdir()):  # no network, not packages that one mirror lacks
        raise ConnectionError(f"apt-get downloaded none of {len(missing)} packages: {said.stderr.strip()[-500:]}")
    for name in missing:
        made = folder / f"{name}.part"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        for archive in archives.glob(f"{name}_*.deb"):
            for place, data in _pages_of(archive):
                (made / f"{place}.html").write_bytes(data)
        made.rename(folder / name)
    shutil.rmtree(archives)


def _pages_of(archive: Path) -> Iterator[tuple[str, bytes]]:
    """The first pages of an archive, in the order of a hash of their paths, by that hash."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as unpacking:
        found = {}
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as tar:
            for member in tar:
                suited = member.isfile() and PAGE_BYTES[0] <= member.size <= PAGE_BYTES[1]
                if suited and member.name.endswith((".html", ".htm", ".xhtml")):
                    file = tar.extractfile(member)
                    found[_hash(member.name)] = file.read() if file else b""
    for place in sorted(found)[:MAX_PAGES_PER_PACKAGE]:
        yield place[:16], found[place]


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
