"""Pretrained weights: out of a cache, or fetched from the Hugging Face hub or the web where there is a network."""

import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import torch

PROBE_SECONDS = 5


def cached_file(repo: str, files: Sequence[str]) -> Path | None:
    """The first of a repository's `files` that the hub's cache holds."""
    for file in files:
        if isinstance(found := huggingface_hub.try_to_load_from_cache(repo, file), str):
            return Path(found)
    return None


def check_reachable(repo: str, file: str) -> None:
    """OSError where nobody answers for the hub: its own client tries for 47 s before it gives up."""
    probe(huggingface_hub.hf_hub_url(repo, file))


def probe(url: str) -> None:
    """OSError where nobody answers."""
    with suppress(urllib.error.HTTPError):  # somebody answers; what is there is for others to find out
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()


def download_file(repo: str, file: str) -> Path:
    """A file of the hub. OSError or RuntimeError where it can't be had."""
    if found := cached_file(repo, [file]):
        return found
    check_reachable(repo, file)
    return Path(huggingface_hub.hf_hub_download(repo, file))


def download_url(url: str) -> Path:
    """A file of the web, kept where torch keeps such. OSError or RuntimeError where it can't be had."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        probe(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    return path
