"""Reading ahead in a thread."""

import threading

import torch

from pipeline.data.member_reader import read_ahead


def test_closing_does_not_wait_for_a_read():
    """The garbage collector closes it wherever it happens to run, also where waiting would never end."""
    may_end = threading.Event()

    def read(batch: torch.Tensor) -> int:
        if batch.item():
            may_end.wait(60)
        return int(batch)

    values = read_ahead(read, iter(torch.arange(8)))
    assert next(values) == 0
    closing = threading.Thread(target=values.close)
    closing.start()
    closing.join(10)
    is_closed = not closing.is_alive()
    may_end.set()
    closing.join()
    assert is_closed
