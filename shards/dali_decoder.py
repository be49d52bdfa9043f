"""Decodes images by DALI in separate processes, because an image that DALI can't decode may crash the process."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

from shards.errors import FairfaceError
from shards.image_check import inspect
from shards.processes import lost_process_errors, new_pool


class DaliDecoder:
    """A pool of processes that try to decode images on the CPU, started with the first image.

    Its methods may be called from several threads at a time. As a context manager it ends the processes with the block.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.lock = threading.Lock()
        self.pool: ProcessPoolExecutor | None = None

    def find_error(self, data: bytes) -> str | None:
        """The reason why DALI can't decode an image; None if it can."""
        return self.run(decoding_error, data)

    def find_rejection(self, data: bytes) -> str | None:
        """The reason why an image would not have been packed or can't be decoded by DALI; None for a good image."""
        return self.run(rejection_or_error, data)

    def run(self, check: Callable[[bytes], str | None], data: bytes) -> str | None:
        """Return the result of `check` on an image in one of the processes, or that the image crashes the decoder."""
        pool = self.current_pool()
        try:
            return pool.submit(check, data).result()
        except BrokenProcessPool:  # broken by this image, or by another thread's
            self.discard_pool(pool)
        with lost_process_errors(), new_pool(1, report_crashes=False) as single:
            single.submit(os.getpid).result()  # if even that fails, the image is not to blame
            try:
                return single.submit(check, data).result()
            except BrokenProcessPool:
                return "it crashes the decoder"

    def current_pool(self) -> ProcessPoolExecutor:
        with self.lock:
            self.pool = self.pool or new_pool(self.workers, report_crashes=False)
            return self.pool

    def discard_pool(self, pool: ProcessPoolExecutor) -> None:
        """Let the next image start a new pool, unless another thread has done so."""
        with self.lock:
            if self.pool is pool:
                self.pool = None
        pool.shutdown(wait=False)

    def __enter__(self) -> "DaliDecoder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)


def decoding_error(data: bytes) -> str | None:
    """The reason why DALI can't decode an image; None if it can. Runs in a process of a DaliDecoder."""
    import numpy as np

    pipeline = build_pipeline()
    try:
        pipeline.feed_input("image", [np.frombuffer(data, np.uint8)])
        pipeline.run()
    except RuntimeError:  # whose message says nothing about the image
        build_pipeline.cache_clear()  # a pipeline is unusable after an error
        return "DALI can't decode it"
    return None


def rejection_or_error(data: bytes) -> str | None:
    """The reason of `inspect`, otherwise DALI's error; None for a good image. Pillow's decoders may also crash."""
    return inspect(data).reason or decoding_error(data)


@cache
def build_pipeline() -> Any:
    """Build a DALI pipeline that decodes one image at a time, as training does on a CPU."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except ImportError as error:
        raise FairfaceError(
            f"NVIDIA DALI is missing ({error}): `make setup`, or pip install 'fairface-generator[cuda13]'"
        ) from error

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, exec_async=False, exec_pipelined=False)
    def decode() -> Any:
        coded = fn.external_source(name="image", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(coded, output_type=types.RGB, device="cpu")

    pipeline = decode()
    pipeline.build()
    return pipeline
