"""A PyTorch inference recorded once as a CUDA graph and replayed: one launch in place of one
for each kernel.

As in PyTorch's notes on CUDA semantics ("CUDA Graphs", `torch.cuda.graph`): a graph reads and
writes the addresses that it was recorded with, so that inputs are copied into buffers that stay,
and outputs are copied out before the next replay overwrites them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from peregrine.backends._torch import TorchSession, closed
from peregrine.compiler.capture import capture
from peregrine.errors import Unsupported
from peregrine.types import Feeds

if TYPE_CHECKING:
    import torch

# What PyTorch's notes run before a capture: libraries choose algorithms and allocate meanwhile.
_WARM_UPS = 3


class RecordedSession(TorchSession):
    """Replays what it recorded for the sizes that are bound; other sizes are recorded anew.

    Where it is not said whether what it calls writes to its inputs, recording finds out.
    """

    _graph: torch.cuda.CUDAGraph | None = None

    def bind(self, feeds: Feeds) -> None:
        """Copy the inputs to the recorded addresses, or record for new sizes.

        Raises:
            FeedError: sizes that the session was not compiled for.
            Unsupported: the inference cannot be recorded (it waits for the GPU, say, because
                a size or a branch depends on computed values).
        """
        tensors = self._host_tensors(feeds)
        fits = self._graph is not None and all(
            new.shape == old.shape for new, old in zip(tensors, self._bound, strict=True)
        )
        if fits:
            # On the stream that replays, and so after the replays that were started.
            for old, new in zip(self._bound, tensors, strict=True):
                old.copy_(new)
        else:
            # The old graph's memory goes back before the new one takes its own.
            self._graph, self._result = None, ()
            self._bound = [self._place(tensor) for tensor in tensors]
            self._record()

    def enqueue(self) -> None:
        if self._graph is None:
            closed()
        else:
            self._graph.replay()  # on the current stream

    def launch(self) -> None:
        """One inference of what is bound, kernel by kernel: what a replay cannot be asked."""
        inputs = self._copies() if self._mutates else self._bound
        with self._inference_mode():
            self._forward(*inputs)
        self.synchronize()

    def close(self) -> None:
        self._graph = None
        super().close()

    def _record(self) -> None:
        import torch

        device = torch.device(self.target.device)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.device(device):
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    copies = self._copies()
                    with self._inference_mode():
                        self._forward(*copies)
            # What writes to its inputs would find other values there at the next replay: its
            # graph begins with copies of them.
            self._mutates = bool(self._mutates) or any(t._version != 0 for t in copies)
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            try:
                with self._inference_mode(), capture(graph, stream):
                    inputs = [t.clone() for t in self._bound] if self._mutates else self._bound
                    self._result = self._forward(*inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._result = ()
                raise Unsupported(
                    f"An inference of {self._name} cannot be recorded as a CUDA graph.",
                    why=str(error).strip().partition("\n")[0],
                    fix="Race it without the option cuda_graph.",
                ) from error
        self._graph = graph
