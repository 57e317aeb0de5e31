"""The checkpoints of torch: ``torch.save`` and distributed checkpoints, as their documentation shows them."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from .base import Saved, Way


class TorchSave(Way):
    """``torch.save`` on rank 0, for which the other ranks wait."""

    def save(self, step):
        if not dist.is_initialized() or dist.get_rank() == 0:
            torch.save(self.training.state(), self.path_of(step))
        if dist.is_initialized():
            dist.barrier()
        return Saved.at_once()

    def restore(self, step):
        self.training.load(torch.load(self.path_of(step), map_location=self.training.device, weights_only=True))


class DcpSave(Way):
    def state(self):
        model, optimizer = get_state_dict(self.training.model, self.training.optimizer)
        return {"model": model, "optimizer": optimizer}

    def save(self, step):
        dcp.save(self.state(), checkpoint_id=str(self.path_of(step)))
        return Saved.at_once()

    def restore(self, step):
        state = self.state()
        dcp.load(state, checkpoint_id=str(self.path_of(step)))
        set_state_dict(
            self.training.model,
            self.training.optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )


class DcpThread(DcpSave):
    """``dcp.async_save`` with its default settings."""

    needs_group = True  # async_save requires a process group

    def __init__(self, training, folder):
        super().__init__(training, folder)
        # A group of its own, because its collectives run beside those of DDP and must not mix with them.
        self.group = dist.new_group(backend="gloo")

    def save(self, step):
        return Saved.of_future(dcp.async_save(self.state(), **self.settings(step)))

    def settings(self, step):
        return {"checkpoint_id": str(self.path_of(step)), "process_group": self.group}


class DcpProcess(DcpThread):
    """``dcp.async_save`` with a process that writes. The process starts with the first save."""

    def settings(self, step):
        return {**super().settings(step), "async_checkpointer_type": AsyncCheckpointerType.PROCESS}


class DcpStager(DcpThread):
    """``dcp.async_save`` with a stager that keeps its buffers. With a device it copies until the next update."""

    def __init__(self, training, folder):
        super().__init__(training, folder)
        on_device = training.device.type == "cuda"  # pinned memory and staging beside training need one
        self.stager = DefaultStager(StagingOptions(on_device, False, on_device, on_device))
        self.staging = None

    def save(self, step):
        response = dcp.async_save(self.state(), **self.settings(step), async_stager=self.stager)
        self.staging = getattr(response, "staging_completion", None)
        return Saved.of_future(getattr(response, "upload_completion", response))

    def guard(self):
        if self.staging is not None:
            self.staging.result()
            self.staging = None
        return super().guard()

    def close(self):
        self.stager.close()
