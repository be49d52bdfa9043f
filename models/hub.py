"""Pretrained weights: from a cache, or downloaded from the Hugging Face hub or another web server."""

import http.client
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import torch

REQUEST_SECONDS = 3  # limit on the wait for a server's first response, including the resolution of its name

_unreachable: dict[str, str] = {}  # server that did not answer this process -> reason


def cached_file(repo: str, files: Sequence[str]) -> Path | None:
    """The first of a repository's `files` that is in the hub's cache."""
    for file in files:
        if isinstance(path := huggingface_hub.try_to_load_from_cache(repo, file), str):
            return Path(path)
    return None


def check_reachable(repo: str, file: str) -> None:
    """Raise OSError if the hub does not answer: its own client tries for 47 s before it gives up.

    With HF_HUB_OFFLINE=1, the hub's offline mode, it raises the error without a request.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    check_server(huggingface_hub.hf_hub_url(repo, file))


def check_server(url: str) -> None:
    """Raise OSError if no server answers. An HTTP error is an answer: the download itself will report it.

    The check takes at most `REQUEST_SECONDS`. A server that did not answer is not asked again by this process.
    """
    server = urllib.parse.urlsplit(url).netloc
    if server not in _unreachable:
        failures: list[str] = []
        # a thread, because urlopen's timeout applies to each address of the server and not to the name resolution
        request = threading.Thread(target=send_request, args=(url, failures), daemon=True)
        request.start()
        request.join(REQUEST_SECONDS)
        if request.is_alive():
            failures.append(f"{server} did not answer within {REQUEST_SECONDS} s")
        if not failures:
            return
        _unreachable[server] = failures[0]
    raise OSError(_unreachable[server])


def send_request(url: str, failures: list[str]) -> None:
    """Send a HEAD request for a URL; if the server does not answer, append the reason to `failures`."""
    try:
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REQUEST_SECONDS).close()
    except (OSError, http.client.HTTPException) as error:
        failures.append(str(error))


def download_file(repo: str, file: str) -> Path:
    """Get a file of the hub, from the cache or downloaded. Raises OSError or RuntimeError if it is unavailable."""
    if cached := cached_file(repo, [file]):
        return cached
    check_reachable(repo, file)
    return Path(huggingface_hub.hf_hub_download(repo, file))


def download_url(url: str) -> Path:
    """Get a file of the web, through torch.hub's cache. Raises OSError or RuntimeError if it is unavailable."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        check_server(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path
