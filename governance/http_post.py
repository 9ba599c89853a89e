"""POST requests with JSON, which follow no redirect."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Handler that follows no redirect.

    A redirect would turn the POST into a GET and take the token to another host.
    """

    def redirect_request(self, *redirect: Any) -> None:
        """No request: the redirect is an error."""
        return


_OPENER = urllib.request.build_opener(_NoRedirect)


def open_post(url: str, content: Any, headers: Mapping[str, str], timeout: float) -> Any:
    """The opened response, a context.

    `timeout` is of each wait for the server.

    Raises:
        urllib.error.HTTPError: a status other than 2xx.
        OSError: the server cannot be reached, or does not answer in time.
    """
    named = {"Content-Type": "application/json", "User-Agent": "assay", **headers}
    request = urllib.request.Request(url, json.dumps(content).encode("utf-8"), named, method="POST")
    return _OPENER.open(request, timeout=timeout)
