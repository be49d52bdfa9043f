"""Errors that the user can fix. The command line prints each as one line; any other exception keeps its traceback."""


class FairfaceError(Exception):
    """Wrong input, a missing file or an impossible combination; the message says what is wrong and what to do."""

    exit_code = 1


class WeightsUnavailable(FairfaceError):
    """Pretrained weights are not on this machine and can't be downloaded."""
