"""What was logged so far: schedulers, early stopping and the choice of the best checkpoint look at it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric, MetricCollection


class MetricsPart:
    """
    The last value of every metric, and what the present epoch's means, sums, minima and maxima have gathered.

    Lightning keeps the latter in collectors, which it makes when a value is logged for the first time. Behind the
    last batch of an epoch nothing is logged any more, so they are made anew from what is known of them.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        self._module = pl_module

    def state_dict(self) -> dict[str, Any]:
        """Return the values, the collectors, and the state of the metric objects of the module."""
        return {
            "values": dict(self._trainer.callback_metrics),
            "collectors": {
                key: _collector_state(collector)
                for key, collector in self._collectors.items()
                if collector.meta.on_epoch and not collector.has_reset
            },
            "objects": {
                name: {"state": metric.metric_state, "updates": metric.update_count}
                for name, metric in self._objects()
                if metric.update_called
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Bring all back, on the device of the training."""
        device = self._trainer.strategy.root_device
        restored = {name: value.to(device) for name, value in state["values"].items()}
        self._trainer._logger_connector._callback_metrics.update(restored)
        for name, metric in self._objects():
            if (saved := state["objects"].get(name)) is not None:
                _load_metric(metric, saved["state"], saved["updates"])
                metric.to(device)
        for key, saved in state["collectors"].items():
            self._collectors[key] = self._collector(saved).to(device)

    @property
    def _collectors(self) -> dict[str, Any]:
        return self._trainer.fit_loop.epoch_loop._results

    def _objects(self) -> Iterator[tuple[str, Any]]:
        for name, module in self._module.named_modules():
            if isinstance(module, MetricCollection):
                list(module.items(copy_state=False))  # those that share a state with another get the present one
            elif isinstance(module, Metric):
                yield name, module

    def _collector(self, saved: dict[str, Any]) -> _ResultMetric:
        description = dict(saved["description"])
        sync = _Sync(
            fn=self._trainer.strategy.reduce, _should=description.pop("sync"), **description.pop("sync_options")
        )
        metadata = _Metadata(**description)
        metadata.sync = sync
        if saved["state"] is not None:
            collector = _ResultMetric(metadata, is_tensor=True)
            _load_metric(collector, saved["state"], updates=1)
        else:
            collector = _ResultMetric(metadata, is_tensor=False)
            collector.value = self._module.get_submodule(description["metric_attribute"])
            collector._update_count = 1
        return collector


def _collector_state(collector: Any) -> dict[str, Any]:
    meta = collector.meta
    names = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
    description = {name: getattr(meta, name) for name in (*names, "dataloader_idx", "metric_attribute")}
    description["reduce_fx"] = meta.reduce_fx.__name__
    description["sync"] = meta.sync.should
    description["sync_options"] = {"rank_zero_only": meta.sync.rank_zero_only, "_op": meta.sync.op}
    return {"description": description, "state": collector.metric_state if collector.is_tensor else None}


def _load_metric(metric: Any, state: dict[str, Any], updates: int) -> None:
    for name, value in state.items():
        setattr(metric, name, value)
    metric._update_count = updates
