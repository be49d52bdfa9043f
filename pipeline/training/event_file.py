"""TensorBoard's event files, written without a thread: an error, such as a full disk, reaches the caller."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_VERSION = "brain.Event:2"  # the first event of every file


class EventFile:
    """A new event file in `folder`. Unlike SummaryWriter, it raises errors, and its name is not predictable."""

    def __init__(self, folder: Path, *, purge_step: int | None = None):
        """With `purge_step`, TensorBoard ignores that step and later ones in earlier files."""
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(folder / name, flags, 0o666), "wb")  # noqa: SIM115 - until `close`
        self._records = RecordWriter(self._file)
        self._write(Event(file_version=FILE_VERSION))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write values of one step."""
        named = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=named)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())
        self._file.flush()
