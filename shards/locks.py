"""Locks between commands: a writer of a folder holds its lock alone, readers share it.

The locks are those of the operating system, on empty files whose paths `shards.workspace` knows: they end with their
process, however it ends, and hold between machines where a network file system supports them.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shards.errors import FairfaceError

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
POLL_SECONDS = 0.5  # between two attempts of `awaited_lock`


class LockHeld(FairfaceError):
    """Another process holds a lock."""


@contextmanager
def exclusive_lock(lock: Path, purpose: str) -> Iterator[None]:
    """Hold a lock alone for the duration of a block that writes into its folder; the folder is created if necessary.

    A new folder is removed again if the block leaves it empty. Raises LockHeld, which names the `purpose` (such as
    "packing"), if another process holds the lock, and FairfaceError as `check_links` does. On file systems without
    locks, other processes are not kept out.
    """
    folder = lock.parent
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(lock, fcntl.LOCK_EX, purpose)
    try:
        check_links(folder)
        yield
    finally:
        with suppress(OSError):  # another process may create the lock again in between
            if is_new and os.listdir(folder) == [lock.name]:
                lock.unlink()
                folder.rmdir()
        os.close(descriptor)


@contextmanager
def awaited_lock(lock: Path, purpose: str) -> Iterator[None]:
    """Like `exclusive_lock`, but wait, and say so, while another process holds the lock."""
    with ExitStack() as stack:
        is_waiting = False
        while True:
            try:
                stack.enter_context(exclusive_lock(lock, purpose))
                break
            except LockHeld:
                if not is_waiting:
                    print(f"another process is using {lock.parent}: waiting for it before {purpose}", flush=True)
                is_waiting = True
                time.sleep(POLL_SECONDS)
        yield


@contextmanager
def shared_lock(lock: Path, purpose: str) -> Iterator[None]:
    """Hold a lock together with other readers for the duration of a block.

    Raises LockHeld if a writer holds it. Does nothing if the folder does not exist, if the lock can neither be created
    nor opened, and on file systems without locks.
    """
    try:
        descriptor = _lock(lock, fcntl.LOCK_SH, purpose)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, *NOT_WRITABLE):
            raise
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def check_links(folder: Path) -> None:
    """Raise FairfaceError if an entry of a folder is a link to anything but a regular file: it might be written to."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink() and not os.path.isfile(entry.path):
                raise FairfaceError(
                    f"{entry.path} is a link, and fairface would write or remove files where it leads: replace it "
                    "with a folder"
                )


def _lock(lock: Path, mode: int, purpose: str) -> int:
    """Open and lock a file, which is created if necessary; return its descriptor."""
    while True:
        descriptor = _open(lock, mode)
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise LockHeld(
                f"another process is using {lock.parent}: wait for it, or stop it, before {purpose}"
            ) from error
        except OSError:
            return descriptor  # no locks here: ENOLCK, ENOTSUP
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # another process removed it, with its folder, in the meantime
        if mode == fcntl.LOCK_EX:
            lock.parent.mkdir(parents=True, exist_ok=True)


def _open(lock: Path, mode: int) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(lock, flags | os.O_RDWR, 0o666)
    except OSError as error:
        if mode == fcntl.LOCK_EX or error.errno not in NOT_WRITABLE:
            raise
        return os.open(lock, flags & ~os.O_CREAT | os.O_RDONLY)  # the lock of another user
