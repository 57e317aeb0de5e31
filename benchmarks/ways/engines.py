"""Checkpoint engines of other projects. They are skipped unless their packages are installed."""

from __future__ import annotations

import importlib.util
import threading
import time

import torch
import torch.distributed as dist

from .base import Saved, Way

POLL_S = 0.02


def _missing(module, package):
    return None if importlib.util.find_spec(module) else f"not installed: pip install {package}"


class TorchCheckpointing(Way):
    """Meta's asynchronous ``torch_checkpointing``. A process writes, and only the update waits for the copy."""

    def __init__(self, training, folder):
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        super().__init__(training, folder)
        config = CheckpointManager.Config.with_async_save()  # pins memory if there is a device
        # By default it writes unaligned data with O_DIRECT, which ext4 and XFS refuse.
        config.storage_config = LocalFileSystemStorageConfig(use_direct_io=False)
        self.manager = CheckpointManager(config)

    @classmethod
    def why_not(cls, device):
        return _missing("torch_checkpointing", "torch_checkpointing")

    def save(self, step):
        return Saved.of_future(self.manager.save(str(self.path_of(step)), self.training.state()))

    def restore(self, step):
        state = self.training.state()
        self.training.load(self.manager.load(str(self.path_of(step)), into=state))

    def guard(self):
        return self.manager.lock()

    def close(self):
        self.manager.close()


class Resiliency(Way):
    """NVIDIA's ``TorchAsyncCheckpoint``, which calls ``torch.save`` in a persistent process."""

    needs_group = True

    def __init__(self, training, folder):
        from nvidia_resiliency_ext.checkpointing.async_ckpt.torch_ckpt import TorchAsyncCheckpoint

        super().__init__(training, folder)
        self.checkpoint = TorchAsyncCheckpoint()

    @classmethod
    def why_not(cls, device):
        if device != "cuda":
            return "needs CUDA: its async_save() calls torch.cuda.synchronize()"
        return _missing("nvidia_resiliency_ext", "nvidia-resiliency-ext")

    def save(self, step):
        saved = Saved()
        if dist.get_rank() != 0:
            saved.finish()
            return saved
        self.checkpoint.async_save(self.training.state(), self.path_of(step))
        threading.Thread(target=self._wait, args=(saved,), daemon=True).start()
        return saved

    def _wait(self, saved):
        """Poll until the save is written. No other code polls, because the next save is later."""
        calls = self.checkpoint._async_calls_queue
        while calls.get_num_unfinalized_calls():
            self.checkpoint.finalize_async_save(no_dist=True)
            time.sleep(POLL_S)
        saved.finish()

    def restore(self, step):
        self.training.load(torch.load(self.path_of(step), map_location=self.training.device, weights_only=True))

    def close(self):
        if dist.get_rank() == 0 and (caller := self.checkpoint._async_calls_queue.persistent_caller):
            caller.close()  # its close() is a collective of all ranks, but only rank 0 saved
