"""The attributes that a program changes while it trains, such as a list of the losses of the present epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final, TypeAlias

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from ..state import clean_name
from .internals import own_attribute_names
from .values import Recorder, TooLargeError, UnsavableError, restored

_FUNCTIONS: Final = (FunctionType, MethodType, BuiltinFunctionType, partial, type)

Records: TypeAlias = dict[str, dict[str, Any]]


class AttributesPart:
    """
    The attributes of the module, its parts, the callbacks and the data module that have changed since training began.

    Lightning saves none of them, because it expects to resume at the end of an epoch. In the middle of an epoch a
    program keeps values there that it needs later, for example ``self.losses``, which ``training_step`` appends to.

    Attributes that have not changed are not saved, so that a setting or a path of a new process stays as it is. Only
    generators and objects with ``state_dict()`` are saved in any case. The comparison begins after ``on_train_start``
    and before the first ``on_train_epoch_start`` of this process. An attribute that was restored once is always saved.

    These are saved: numbers, strings, tensors, arrays, and lists, dicts, sets and tuples of them; generators of random
    numbers; objects with ``state_dict()`` and ``load_state_dict()``; and objects of the program's own classes that have
    nothing but such attributes. Whatever shares its memory with the model is not an attribute of its own. A warning
    names each attribute that has changed and is larger than that, and after a resume each one that is missing.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, own: Callback) -> None:
        self._trainer = trainer
        self._module = pl_module
        self._holders = dict(_holders(trainer, pl_module, own))
        self._root = _root(pl_module)
        self._names = own_attribute_names()
        self._before: dict[str, dict[str, Any]] | None = None  # as in _now(), when training began
        self._restored: dict[str, set[str]] = {}
        self._loaded: dict[str, Records] = {}
        self._warned: set[str] = set()

    def mark(self) -> None:
        """Compare with the present values from now on."""
        recorder = self._recorder()
        self._before = {
            key: {name: recorder.fingerprint(value) for name, value in self._attributes(key, holder)}
            for key, holder in self._holders.items()
        }

    def state_dict(self) -> dict[str, Records]:
        """Return a record of every attribute that has changed, by its holder and its name."""
        if self._before is None:
            return {}
        recorder = self._recorder()
        state: dict[str, Records] = {}
        for key, holder in self._holders.items():
            records = {
                name: record
                for name, value in self._attributes(key, holder)
                if (record := self._record(recorder, key, name, value)) is not None
            }
            if records:
                state[key] = records
        return state

    def held(self) -> Iterator[object]:
        """Yield the objects that are saved as soon as they change. A recording of one save need not have them."""
        recorder = self._recorder()
        for key, holder in self._holders.items():
            for _, value in self._attributes(key, holder):
                yield from recorder.held(value)

    def load_state_dict(self, state: dict[str, Records]) -> None:
        """Keep *state* for :meth:`apply`."""
        self._loaded = state
        self._restored = {key: set(records) for key, records in state.items()}

    def apply(self) -> None:
        """Give the attributes their values back, after all hooks that a new process calls."""
        device = self._trainer.strategy.root_device
        for key, records in self._loaded.items():
            holder = self._holders.get(key)
            if holder is None:
                continue
            for name, record in records.items():
                if not restored(holder, name, record, device):
                    self._warn_lost(key, name, record)
        self._loaded = {}

    def _record(self, recorder: Recorder, key: str, name: str, value: Any) -> dict[str, Any] | None:
        assert self._before is not None
        before = None if name in self._restored.get(key, ()) else self._before[key].get(name)
        try:
            return recorder.changed(value, before)
        except TooLargeError as error:
            self._warn_once(
                key,
                name,
                f"has changed in training and {error}, so it is not saved. If it is a tensor, make it a buffer with "
                f"register_buffer(); otherwise save it in on_save_checkpoint(), or keep less in it",
            )
            return None
        except UnsavableError as error:
            return {"kind": "lost", "type": str(error)} if str(error) else None

    def _warn_lost(self, key: str, name: str, record: dict[str, Any]) -> None:
        self._warn_once(
            key,
            name,
            f"had changed in the middle of the epoch that continues now, and could not be restored: "
            f"{record.get('type', record['kind'])}. Set it up in on_train_start() or on_train_epoch_start(), save it "
            f"in on_save_checkpoint(), or keep numbers, strings, tensors, or lists and dicts of them in it",
        )

    def _warn_once(self, key: str, name: str, text: str) -> None:
        where = f"{type(self._holders[key]).__name__}.{name}"
        if where not in self._warned:
            self._warned.add(where)
            rank_zero_warn(f"{where} {text}")

    def _recorder(self) -> Recorder:
        tensors = [*self._module.parameters(), *self._module.buffers()]
        known = [*self._trainer.optimizers, *(config.scheduler for config in self._trainer.lr_scheduler_configs)]
        return Recorder(tensors, known, self._root)

    def _attributes(self, key: str, holder: Any) -> Iterator[tuple[str, Any]]:
        if _root(holder) == "torch":  # settings of a layer that a schedule changes, such as Dropout.p
            yield from ((name, value) for name, value in vars(holder).items() if type(value) is float)
            return
        for name, value in vars(holder).items():
            if name not in self._names and not isinstance(value, _FUNCTIONS):
                yield name, value


def _holders(trainer: Trainer, pl_module: LightningModule, own: Callback) -> Iterator[tuple[str, Any]]:
    root = _root(pl_module)
    for name, module in pl_module.named_modules():
        if _root(module) in (root, "torch") and not isinstance(module, Metric):
            yield f"module.{clean_name(name)}" if name else "module", module
    seen: Counter[str] = Counter()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback is not own and _is_of_the_program(callback):
            name = type(callback).__qualname__
            yield f"callback.{name}.{seen[name]}", callback
            seen[name] += 1
    if trainer.datamodule is not None:  # type: ignore[attr-defined]
        yield "datamodule", trainer.datamodule  # type: ignore[attr-defined]


def _is_of_the_program(callback: Callback) -> bool:
    """Return False for callbacks of Lightning, and those derived from one: their own state is all that they keep."""
    bases = [base for base in type(callback).__mro__ if issubclass(base, Callback)]
    return not any(base.__module__.startswith("lightning.") for base in bases if base is not Callback) or isinstance(
        callback, LambdaCallback
    )


def _root(holder: Any) -> str:
    return "torch" if _is_plain_layer(holder) else type(holder).__module__.partition(".")[0]


def _is_plain_layer(holder: Any) -> bool:
    return isinstance(holder, nn.Module) and type(holder).__module__.startswith("torch.nn.")
