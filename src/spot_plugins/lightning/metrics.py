"""The values that were logged so far. Schedulers, early stopping and the choice of the best checkpoint use them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torchmetrics import Metric, MetricCollection

from . import internals


class MetricsPart:
    """
    The last value of every metric, and the means, sums, minima and maxima of the present epoch so far.

    Lightning keeps the latter in collectors. It makes a collector when a value is logged for the first time. After
    the last batch of an epoch nothing is logged any more, so this part makes the collectors from what was saved.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        self._module = pl_module

    def state_dict(self) -> dict[str, Any]:
        """Return the values, the collectors, and the state of the metric objects of the module."""
        return {
            "values": dict(self._trainer.callback_metrics),
            "collectors": {
                key: {
                    "description": internals.collector_description(collector),
                    "state": collector.metric_state if collector.is_tensor else None,
                }
                for key, collector in internals.collectors(self._trainer).items()
                if collector.meta.on_epoch and not collector.has_reset
            },
            "objects": {
                name: {"state": metric.metric_state, "updates": metric.update_count}
                for name, metric in self._objects()
                if metric.update_called
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore values, collectors and metric objects on the device of the training."""
        device = self._trainer.strategy.root_device
        restored = {name: value.to(device) for name, value in state["values"].items()}
        internals.callback_metrics(self._trainer).update(restored)
        for name, metric in self._objects():
            if (saved := state["objects"].get(name)) is not None:
                _load_metric(metric, saved["state"], saved["updates"])
                metric.to(device)
        collectors = internals.collectors(self._trainer)
        collectors.clear()
        for key, saved in state["collectors"].items():
            collectors[key] = self._collector(saved).to(device)

    def _objects(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._module.named_modules():
            if isinstance(module, MetricCollection):
                # Metrics that share a state with another one get the present state by this call.
                list(module.items(copy_state=False))
            elif isinstance(module, Metric):
                yield name, module

    def _collector(self, saved: dict[str, Any]) -> Any:
        description, state = saved["description"], saved["state"]
        collector = internals.make_collector(self._trainer, description, is_tensor=state is not None)
        if state is not None:
            _load_metric(collector, state, 1)
        else:
            collector.value = self._module.get_submodule(description["metric_attribute"])
            internals.set_num_updates(collector, 1)
        return collector


def _load_metric(metric: Any, state: dict[str, Any], num_updates: int) -> None:
    for name, value in state.items():
        setattr(metric, name, value)
    internals.set_num_updates(metric, num_updates)
