"""The look at a checkpoint before anything is prepared."""

from __future__ import annotations

from ..guard import warn
from ..session import SpotSession
from .progress import Progress


class Peek:
    """The progress that a program was told of before it has built anything, to be compared with the resume."""

    def __init__(self, session: SpotSession) -> None:
        self._session = session
        self._step: int | None = None  # None: nobody has asked

    def progress(self) -> Progress:
        """Return the progress from which a resume will continue."""
        found = self._session.peek(("position", "epoch"))
        self._step = 0 if found is None else found.step
        if found is None:
            return Progress(step=0, epoch=0, batches=0, resumed=False)
        epoch = found.value if isinstance(found.value, int) else 0
        return Progress(step=found.step, epoch=epoch, batches=0, resumed=True)

    def compare(self, step: int) -> None:
        """Warn if the training continues after another *step*."""
        if self._step not in (None, step):
            warn(
                f"peek() found step {self._step}, which is damaged, so the training continues from step {step}. "
                f"Start the program again if it was built for step {self._step}"
            )
