"""Ends training between two steps on SIGTERM or Ctrl-C, with an exit code for each."""

import signal
from types import FrameType, TracebackType

from shards.errors import FairfaceError

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}  # 75: EX_TEMPFAIL of sysexits.h, "try again"


class TrainingInterrupted(FairfaceError):
    """A signal ended training after a checkpoint was saved; `exit_code` tells which signal."""

    def __init__(self, message: str, *, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class StopSignals:
    """Context manager in which SIGTERM (a SLURM time limit) and SIGINT only request that training end.

    A second Ctrl-C ends the process at once. A second SIGTERM does not: SLURM and torchrun may each send one.
    """

    def __init__(self) -> None:
        self.received = False
        self.exit_code = EXIT_CODES[signal.SIGTERM]  # also where another rank received the signal

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.signal(number, self._handle) for number in EXIT_CODES}
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received, self.exit_code = True, EXIT_CODES[signal.Signals(number)]
        if number == signal.SIGINT:
            signal.signal(number, self._previous[signal.SIGINT])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
