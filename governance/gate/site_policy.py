"""Site policy: rules and keys above a run's own file.

Two files in one folder, `/etc/assay` or the folder of the file that `$ASSAY_SITE_POLICY` names:

    policy.toml   the site's policy
    site.toml     name = "Example Institute"
                  policy = "9f2c..."                # the digest of policy.toml (`assay governance site policy.toml`)
                  trusted_keys = ["root.pem.pub"]   # keys that decide here; also those that they certified
                  verdict_by = ["audit", "gate"]    # optional: two keys for each verdict (`two_keys.py`)

On a site a run's policy must be the site's or descend from it (its chain of `parent`s holds that digest, so whatever
is looser needs the approvals of `approvals.py`), the run's `trusted_keys` must be the site's or certified by them,
and so must the signing key. Promise: `/etc/assay` cannot be switched off by a variable; where both exist, both bind.

A gate whose expectation is custom code (`gx = "mylab.rules:ExpectIt"`) must pin it (`sha256`) on a site.

Limits: an account that can write `/etc/assay`, start a container without it, or alter this program is not bound. The
reader decides then: a verdict names the site's policy that it is under, and a reader who trusts that site's keys alone
accepts no other. Where neither place has a file, nothing is required, and the verdict states it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from governance.config import Section, load_config
from governance.errors import ConfigError, GateClosed
from governance.gate.approvals import links
from governance.gate.policy import Policy, load_policy
from governance.signing.certificates import certificate_path
from governance.signing.dsse import PublicKey, certified, key_id, private_key, public_key, trusted_key
from governance.stage import now

VARIABLE = "ASSAY_SITE_POLICY"
SYSTEM = Path("/etc/assay/policy.toml")
PINS = "site.toml"


def _pair(value: tuple[str, ...]) -> tuple[str, ...]:
    """Two different names, or none.

    Raises:
        ValueError: it is something else.
    """
    if value and (len(set(value)) != 2 or len(value) != 2 or not all(value)):
        raise ValueError('needs two different names, for example ["audit", "gate"], or none')
    return value


TwoNames = Annotated[tuple[str, ...], AfterValidator(_pair)]
"""Two different names, or none."""


class SitePins(Section):
    """Pinned digest and trusted keys of a site's policy."""

    name: str = Field(min_length=1)
    """The site, for the reader of a verdict."""
    policy: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of that policy, people's keys and parents included."""
    trusted_keys: tuple[str, ...] = Field(min_length=1)
    """Public key files (PEM), relative to this file: the only ones whose verdicts open a gate here, with those that
    they certified."""
    verdict_by: TwoNames = ()
    """Two names: the signer of the audit's statement and the signer of the verdict; empty: one key may do both."""


@dataclass(frozen=True)
class Site:
    """The rules of one site, as they were read."""

    name: str
    policy: Policy
    keys: tuple[PublicKey, ...]
    verdict_by: tuple[str, ...]
    path: Path
    """The policy's file."""


def sites() -> tuple[Site, ...]:
    """The sites whose rules hold on this machine.

    The system's comes first, then the variable's.

    Raises:
        ConfigError: a file of a site is missing, is wrong, or the policy is not the one that is pinned.
    """
    return tuple(_read(path) for path in _paths())


def site_binds() -> bool:
    """Return whether the rules of any site hold on this machine."""
    return bool(_paths())


def _paths() -> list[Path]:
    paths = [SYSTEM] if _is_there(SYSTEM) or _is_there(SYSTEM.with_name(PINS)) or _misspelt() else []
    if named := os.environ.get(VARIABLE):
        paths += [path for path in [Path(named).absolute()] if path not in paths]
    return paths


def _misspelt() -> bool:
    """Return whether a file is there in other letters.

    The maintainer of /etc/assay/Policy.TOML meant it to bind, so nobody passes until it is named right.
    """
    try:
        names = os.listdir(SYSTEM.parent)
    except OSError:
        return False
    return any(name.casefold() in (SYSTEM.name, PINS) for name in names)


def _is_there(path: Path) -> bool:
    """Return whether a file or link exists, readable or not.

    In doubt it counts as existing, so that its rules bind.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _read(path: Path) -> Site:
    pins = load_config(path.with_name(PINS), SitePins)
    policy = load_policy(path)
    if policy.digest != pins.policy:
        raise ConfigError(
            f"{path}: has the digest {policy.digest}, and {path.with_name(PINS)} pins {pins.policy}. Ask the "
            "maintainer of the site's policy to correct one of them."
        )
    keys = tuple(trusted_key(path.parent / name) for name in pins.trusted_keys)
    return Site(pins.name, policy, keys, pins.verdict_by, path)


def site_keys(found: Sequence[Site]) -> list[PublicKey]:
    """The keys that each of these sites trusts."""
    shared = [{key_id(key) for key in site.keys} for site in found]
    return [key for key in found[0].keys if all(key_id(key) in ids for ids in shared)] if found else []


def described(found: Sequence[Site]) -> dict[str, Any] | None:
    """Site facts for a verdict; None without a site."""
    if not found:
        return None
    return {
        "name": " and ".join(site.name for site in found),
        "policies": [{"name": site.policy.name, "digest": site.policy.digest} for site in found],
    }


def require_site(policy: Policy, trusted_keys: Sequence[str], signing_key: Path, folder: Path) -> tuple[Site, ...]:
    """Sites that bind here, once the run meets their rules.

    Args:
        policy: the run's, with its parents.
        trusted_keys: public key files of the run, relative to `folder`.
        signing_key: the path of the private key that signs for it.
        folder: where relative paths start.

    Raises:
        GateClosed: the policy does not descend from a site's, or a key is not one of the site's.
    """
    found = sites()
    for site in found:
        if faults := [*_descent(policy, site), *_keys(trusted_keys, signing_key, folder, site)]:
            raise GateClosed(
                "\n  ".join([f"{site.name} decides what opens a gate here ({site.path}), and this run:", *faults])
            )
    return found


def _descent(policy: Policy, site: Site) -> Iterator[str]:
    chain = [policy.digest, *(parent.digest for _, parent in links(policy))]
    if site.policy.digest not in chain:
        yield (
            f"has the policy {policy.name} ({policy.digest[:16]}…), which does not descend from the site's "
            f'{site.policy.name} ({site.policy.digest[:16]}…). Write parent = "{site.path}" in it, or take the site\'s '
            "policy itself"
        )


def _keys(trusted_keys: Sequence[str], signing_key: Path, folder: Path, site: Site) -> Iterator[str]:
    names = ", ".join(sorted(key_id(key)[:16] + "…" for key in site.keys))
    if not trusted_keys:
        yield f"names no trusted_keys, so that its own key would decide; name the site's ({names})"
    for name in trusted_keys:
        if not _counts(public_key(folder / name), _beside(folder / name), site):
            yield f"trusts {name}, which is neither a key of the site ({names}) nor certified by one for today"
    if not signing_key.exists():
        yield f"has no signing key at {signing_key}; have one certified: assay governance keygen --job PATH"
    elif not _counts((own := private_key(signing_key, make=False)).public_key(), own.certificate, site):
        yield f"signs with {signing_key}, which is neither a key of the site ({names}) nor certified by one for today"


def _beside(public: Path) -> Any:
    """The certificate's envelope next to a public key file, or None."""
    try:
        return json.loads(certificate_path(public.with_name(public.name.removesuffix(".pub"))).read_bytes())
    except (OSError, ValueError):
        return None


def _counts(key: PublicKey, envelope: Any, site: Site) -> bool:
    """Return whether a key is the site's, or certified by it today."""
    if key_id(key) in {key_id(own) for own in site.keys}:
        return True
    certificate = certified(envelope, site.keys)
    return certificate is not None and certificate.public_key == key.public_bytes_raw() and certificate.covers(now())
