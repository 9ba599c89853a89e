"""Upload of an exported folder to the Hugging Face hub.

A new repository is private unless it is asked to be public. The token is that of the hub's own login (`hf auth login`,
or HF_TOKEN). A failed upload loses nothing: the folder stays, and `hf upload` sends what is missing.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from governance.errors import ConfigError, PipelineError, StorageError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FIXES = {
    401: "The token is missing or invalid: run hf auth login, or set HF_TOKEN",
    403: "The token may not write there: use one with write access to this account",
    404: "The account does not exist, or the token cannot see it",
    429: "The hub limits requests: wait some minutes",
}


def require_name(repository: str) -> None:
    """Raise unless this is OWNER/NAME.

    Raises:
        ConfigError: it is not.
    """
    if not _NAME.fullmatch(repository):
        raise ConfigError(f"--push {repository}: give the repository as OWNER/NAME")


def push(folder: Path, repository: str, message: str, *, public: bool = False, endpoint: str | None = None) -> str:
    """Upload a folder into a model repository; return the commit's address.

    The repository is created if it does not exist.

    Raises:
        ConfigError: the repository's name is not OWNER/NAME.
        PipelineError: the hub refuses; states why, and the command that finishes the upload.
        StorageError: the hub cannot be reached, or fails.
    """
    require_name(repository)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    api = HfApi(endpoint=endpoint, library_name="assay")
    private = "" if public else " --private"  # hf upload, too, creates a repository, and a public one without it
    again = f"{folder} is complete; send it with: hf upload {repository} {shlex.quote(str(folder))}{private}"
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        made = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code
        text = f"--push {repository}: the hub answers {status} ({error.server_message or str(error).splitlines()[0]})"
        if status >= 500:
            raise StorageError(f"{text}. Try again later. {again}") from error
        raise PipelineError(f"{text}. {_FIXES.get(status, 'See its message')}. {again}") from error
    except (LocalTokenNotFoundError, ValueError) as error:
        raise PipelineError(f"--push {repository}: {error}. {again}") from error
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):  # by the hub's version
            raise
        raise StorageError(f"--push {repository}: the hub cannot be reached ({error}). {again}") from error
    return str(made.commit_url)
