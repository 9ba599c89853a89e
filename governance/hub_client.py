"""Requests to the Hugging Face hub, and uploads to it.

Requests are repeated where the hub is busy or the connection breaks; a refusal names its fix. `HF_ENDPOINT` names
another hub; the token is that of the hub's own login (`hf auth login`, or HF_TOKEN). A new repository is private unless
it is requested to be public. A failed upload loses nothing: another one sends what is missing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from governance.errors import ConfigError, MissingInput, PipelineError, StorageError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIXES = {
    401: "The token is missing or invalid: run hf auth login, or set HF_TOKEN",
    403: "The token may not write there: use one with write access to this account",
    404: "The account does not exist, or the token cannot see it",
    429: "The hub limits requests: wait some minutes",
}
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
_WAITS = (1.0, 4.0, 15.0)  # seconds before another try where the hub is busy or the connection broke
_SILENT = 120.0  # seconds without a byte after which a connection counts as broken
_Answer = TypeVar("_Answer")
Kind = Literal["dataset", "model"]
_WORDS = {"dataset": "data set", "model": "model"}


@dataclass(frozen=True)
class HubPlace:
    """A repository of the hub at a revision."""

    setting: str
    """The setting that names it, as messages begin: `source news`."""
    kind: Kind
    name: str
    revision: str
    local: str
    """The setting of a local copy: `dataset = "FOLDER"`."""

    def __str__(self) -> str:
        """Its name in messages."""
        return f"the {_WORDS[self.kind]} {self.name!r} at {self.revision}"

    def unreachable(self, error: Exception) -> str:
        """Message where the hub does not answer, with the way round it."""
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        form = " --repo-type dataset" if self.kind == "dataset" else ""
        return (
            f"{self} cannot be read from the hub ({said}). Where the hub cannot be reached, fetch it elsewhere with "
            f"`hf download{form} {self.name} --revision {self.revision} --local-dir FOLDER`, and give {self.local}."
        )


def ask_hub(place: HubPlace, request: Callable[[Any], _Answer]) -> _Answer:
    """The hub's answer; tried again where it is busy or breaks off.

    Raises:
        MissingInput: it refuses, or cannot be reached.
        StorageError: this machine cannot store what it sent.
    """
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    api = _api()
    for wait in (*_WAITS, None):
        try:
            return request(api)
        except PipelineError:
            raise
        except Exception as error:  # a dozen types of two packages
            if getattr(error, "errno", None) in _STORAGE:
                raise StorageError(
                    f"{place.setting}: {place} cannot be stored: {error}. Make room, then run again"
                ) from error
            status = getattr(getattr(error, "response", None), "status_code", None)
            passing = (status or 500) >= 500 or status == 429
            passing &= not isinstance(error, OfflineModeIsEnabled)
            if wait is None or not passing:
                raise MissingInput(f"{place.setting}: {_reason(place, error, status)}") from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _api() -> Any:
    """The hub's client."""
    import huggingface_hub

    huggingface_hub.get_session().timeout = _SILENT  # the library would wait for ever
    return huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="assay")


def _reason(place: HubPlace, error: Exception, status: int | None) -> str:
    """The hub's refusal, and the way out of it."""
    kind, words = type(error).__name__, _WORDS[place.kind]
    owner = f" (OWNER/NAME; an hf:// path must have both, also for a {words} that is known by its name alone)"
    if kind == "GatedRepoError" or status == 403:
        return (
            f"{place} is gated: its owner grants access. Accept its terms on its page, then set HF_TOKEN to a token of "
            "that account (or run: hf auth login)."
        )
    if status == 401:
        return (
            f"the hub does not show {place} without a valid token: it is private, gated or does not exist. Check the "
            f"name{owner}, and set HF_TOKEN to a token that may read it."
        )
    if kind == "RevisionNotFoundError":
        return f"{place}: there is no such revision. Give a branch, a tag or a commit of the {words}."
    if status == 404:
        return f"{place}: not found on the hub. Check the name{owner}."
    if status == 429:
        return f"the hub answered {place} with 429 (too many requests). Wait some minutes, or set HF_TOKEN."
    if (status or 0) >= 500:
        return f"the hub answered {place} with {status}, {len(_WAITS) + 1} times. Run the command again later."
    return place.unreachable(error)


def require_name(repository: str) -> None:
    """Raise unless this is OWNER/NAME.

    Raises:
        ConfigError: it is not.
    """
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"push to {repository!r}: give the repository as OWNER/NAME")


def push(
    folder: Path,
    repository: str,
    message: str,
    *,
    again: str,
    kind: Kind = "model",
    public: bool = False,
    replaces: Sequence[str] = (),
) -> str:
    """Upload a folder into a repository; return the commit's address.

    The repository is created if it does not exist. `again`: the command that finishes a failed upload, for its error.
    `replaces`: patterns; files of the repository that match and are not in the folder are removed in the same commit.

    Raises:
        ConfigError: the repository's name is not OWNER/NAME.
        PipelineError: the hub refuses, with the reason and the command that finishes the upload; or the repository
            exists and is public, and `public` is not set.
        StorageError: the hub cannot be reached, or fails.
    """
    require_name(repository)
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = _api()
    try:
        api.create_repo(repository, private=not public, exist_ok=True, repo_type=kind)
        if not public and not api.repo_info(repository, repo_type=kind).private:
            raise PipelineError(
                f"push to {repository}: it exists and is public; nothing was sent. Add --public to publish"
            )
        made = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=message, repo_type=kind,
            delete_patterns=[*replaces] or None,
        )  # fmt: skip
    except HfHubHTTPError as error:
        status = error.response.status_code
        text = f"push to {repository}: the hub answers {status} ({error.server_message or str(error).splitlines()[0]})"
        if status >= 500:
            raise StorageError(f"{text}. Try again later. {again}") from error
        raise PipelineError(f"{text}. {_FIXES.get(status, 'See its message')}. {again}") from error
    except json.JSONDecodeError as error:
        raise PipelineError(
            f"push to {repository}: the answer is not JSON ({error}). Check HF_ENDPOINT and proxies. {again}"
        ) from error
    except (LocalTokenNotFoundError, ValueError) as error:
        raise PipelineError(f"push to {repository}: {error}. {again}") from error
    except Exception as error:
        # The errors' classes depend on the version of huggingface_hub.
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise StorageError(f"push to {repository}: the hub cannot be reached ({error}). {again}") from error
    return str(made.commit_url)
