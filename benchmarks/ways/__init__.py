"""The ways to save and restore a training that are compared, by their printed names."""

from __future__ import annotations

from importlib import import_module

MODULES = {
    "spot_plugins": "spot.Spot",
    "torch.save": "torch_ways.TorchSave",
    "DCP save": "torch_ways.DcpSave",
    "DCP async, thread": "torch_ways.DcpThread",
    "DCP async, DefaultStager": "torch_ways.DcpStager",
    "DCP async, process": "torch_ways.DcpProcess",
    "Lightning ModelCheckpoint": "hosts.Lightning",
    "Lightning AsyncCheckpointIO": "hosts.LightningAsync",
    "Accelerate save_state": "hosts.Accelerate",
    "torch_checkpointing": "engines.TorchCheckpointing",
    "nvidia-resiliency-ext": "engines.Resiliency",
}


def find(name):
    """Import and return the class of the way called *name*."""
    module, _, attribute = MODULES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def why_not(name, device):
    """Return the reason why the way called *name* cannot run here, or None."""
    return find(name).why_not(device)


def add_flag(parser, names=tuple(MODULES)):
    """Let the user choose some of *names*."""
    text = "ways to compare, by name; all by default: " + ", ".join(f"'{name}'" for name in names)
    parser.add_argument("--ways", nargs="+", choices=names, default=list(names), metavar="WAY", help=text)
