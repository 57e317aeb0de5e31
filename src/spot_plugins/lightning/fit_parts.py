"""The parts that one ``fit`` saves, and the order in which they are restored right before the first batch."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from ..config import SpotConfig
from ..session import SpotSession
from ..state import ModelPart, Part, RngPart, register_optimizers
from .attributes import AttributesPart
from .best import BestFiles
from .checkpoint_hooks import CheckpointHooksPart
from .gradients import PendingGradients
from .kept import KeptPart
from .loops import LoopsPart
from .metrics import MetricsPart
from .parts import CallbacksPart, DeferredPart, FrozenPart
from .position import PositionPart
from .precision import precision_part
from .steps import Steps, own_optimizers


class FitParts:
    """The parts of one ``fit``."""

    def __init__(
        self, trainer: Trainer, session: SpotSession, best: BestFiles, steps: Steps, config: SpotConfig
    ) -> None:
        self._trainer = trainer
        self._session = session
        self._best = best
        self._steps = steps
        # Made now, because configure_optimizers() may ask for the number of steps, which makes the loaders.
        self.position = PositionPart(trainer, config.fast_forward)
        self.loops = LoopsPart(trainer, self.position, session.program, keep_batch=config.elastic_batch == "keep")
        self._rng = DeferredPart(RngPart())
        self._kept: list[KeptPart] = []

    def restore_again(self) -> None:
        """Restore once more what hooks have changed since the resume, and for the first time what had to wait."""
        self.position.apply()
        self._callbacks.restore_again()  # first, because a callback may make groups in an optimizer
        for part in self._kept:
            part.restore_again()
        self.attributes.apply()
        self._gradients.apply()
        self.loops.apply()
        self.restore_streams()

    def restore_streams(self) -> None:
        """Restore the random streams."""
        self._rng.apply()

    def register(self, pl_module: LightningModule, own: Callback) -> None:
        """Register everything that exists by ``on_fit_start``."""
        trainer, session = self._trainer, self._session
        model = trainer.strategy.model  # FSDP's own wrapper holds the flat parameters
        assert model is not None
        self.attributes = AttributesPart(trainer, pl_module, own)
        self._gradients = PendingGradients(trainer, pl_module, self._steps)
        self._callbacks = CallbacksPart(trainer, pl_module, own, self._best)
        self.loops.add("attributes", self.attributes)
        self.loops.add("gradients", self._gradients)
        self._register_kept("model", ModelPart(model))
        self._register_kept("frozen", FrozenPart(pl_module))
        # Before the optimizers, because a callback may make groups in one.
        session.register("callbacks", self._callbacks)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        # What Lightning puts in the place of no optimizer has no state, not even an empty one.
        returned = [optimizer for optimizer in trainer.optimizers if optimizer.state_dict()]
        optimizers = [*returned, *own_optimizers(trainer, pl_module)]
        register_optimizers(self._register_kept, model, optimizers, schedulers)
        self._register_kept("precision", precision_part(trainer.precision_plugin))
        session.register("loops", self.loops)
        self._register_kept("checkpoint-hooks", CheckpointHooksPart(trainer, pl_module, own))
        self._register_kept("metrics", MetricsPart(trainer, pl_module))
        if trainer.datamodule is not None:  # type: ignore[attr-defined]
            self._register_kept("datamodule", trainer.datamodule)  # type: ignore[attr-defined]
        session.register("position", self.position)
        session.register("rng", self._rng)

    def _register_kept(self, name: str, part: Part) -> None:
        kept = KeptPart(part)
        self._kept.append(kept)
        self._session.register(name, kept)
