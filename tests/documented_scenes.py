"""The scenes of :mod:`documented`: what each page takes as given, and its blocks at their places."""

from __future__ import annotations

from documented import ROOT, Scene

TORCH = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
torch.manual_seed(7)
dataset = TensorDataset(torch.randn(640, 4), torch.randn(640, 1))
model = nn.Linear(4, 1)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60)
def as_before():
    inputs, targets = batch
    backward(nn.functional.mse_loss(model(inputs), targets))
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
def backward(loss):
    loss.backward()
"""
"""A training in plain torch, without its loop."""

ACCELERATE = (
    TORCH
    + """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
backward = accelerator.backward
"""
)

MODULE = """
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(7)
dataset = TensorDataset(torch.randn(640, 4), torch.randn(640, 1))
class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1])
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.layer(batch[0]), batch[1]))
    test_step = validation_step
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
model = Model()
"""

HOST_SCENES = [
    Scene(
        page="README.md",
        program=f"{MODULE}<< SpotCheckpoint\nassert steps_of('s3://bucket/run-7')[0] == 60\n",
        says="resumed from step 60 of s3://bucket/run-7",
        num_runs=2,
    ),
    Scene(
        page="README.md",
        program=f"""{ACCELERATE}
<< SpotHook
assert steps_of("s3://bucket/run-7")[0] == 60
""",
        says="resumed from step 60 of s3://bucket/run-7",
        num_runs=2,
    ),
    Scene(
        page="README.md",
        program="""
import torch
from transformers import Trainer, TrainingArguments
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def forward(self, x, labels):
        return {"loss": torch.nn.functional.mse_loss(self.layer(x), labels)}
torch.manual_seed(7)
model = Model()
dataset = [{"x": torch.randn(4), "labels": torch.randn(1)} for _ in range(160)]
arguments = TrainingArguments("output", save_strategy="no", report_to=[], use_cpu=True)
<< SpotTrainerCallback
assert steps_of("s3://bucket/run-7")[0] == 60
""",
        says="resumed from step 60 of s3://bucket/run-7",
        num_runs=2,
    ),
    Scene(
        page="README.md",
        program=f"{TORCH}<< SpotLoop\nassert steps_of('s3://bucket/run-7')[0] == 60\n",
        says="resumed from step 60 of s3://bucket/run-7",
        num_runs=2,
    ),
    Scene(
        page="docs/tutorials/lightning.md",
        program=f"""{MODULE}
<< SpotCheckpoint(
assert steps_of("s3://bucket/run-7")[0] == 60
<< class Classifier
class Changed(Classifier, Model):
    pass
spot = SpotCheckpoint("s3://bucket/run-7", every_steps=100)
trainer = Trainer(max_epochs=4, callbacks=[spot])
trainer.fit(Changed(), elastic_loader(dataset, batch_size=32, seed=7))
assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [1e-4]
""",
        says="resumed from step 60",
    ),
    Scene(
        page="docs/tutorials/accelerate.md",
        program=f"""{ACCELERATE}
from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
loader, labeled_loader = (elastic_loader(dataset, batch_size=size, seed=7) for size in (32, 64))
pairs = 0
def after_both():
    global batch, pairs
    batch, pairs = (x, y), pairs + 1
    as_before()
    spot.after_step()
with SpotHook(accelerator, "s3://bucket/run-7", every_steps=10) as spot:
    prepared = accelerator.prepare(model, optimizer, loader, labeled_loader, scheduler)
    model, optimizer, loader, labeled_loader, scheduler = prepared
    << group["lr"] = 1e-4
    for epoch in spot.epochs(2):
        << labeled_loader
assert pairs == 40
assert steps_of("s3://bucket/run-7")[0] == 40
assert max(group["lr"] for group in optimizer.param_groups) <= 1e-4
""",
        instead="after_both()",
    ),
    Scene(
        page="docs/tutorials/accelerate.md",
        program="""
<< PartialState
from accelerate import Accelerator
assert Accelerator().distributed_type == DistributedType.MULTI_GPU
""",
    ),
    Scene(
        page="docs/concepts/step-fingerprints.md",
        program=f"""{TORCH}
import sys
from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession
batches_per_step = 1
for name in ("run-7", "run-7-uninterrupted"):
    torch.manual_seed(7)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3 if name == "run-7" else 2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=60)
    with SpotSession(SpotConfig(url=f"s3://bucket/{{name}}", every_steps=10)) as session:
        session.register_model(model, [optimizer], [scheduler])
        session.resume()
        epoch = 0
        for step in range(1, 21):
            num_batches, batch = step, dataset[:32]
            as_before()
            << session.after_step(
        session.finish(20)
<< compare_runs
""",
        says="rank 0: rates differ from step 1 on",
    ),
    Scene(
        page="docs/operating.md",
        program=f"""{MODULE}
from lightning.pytorch import Trainer
from spot_plugins.data import elastic_loader
<< basicConfig
<< PushFailing
trainer = Trainer(max_epochs=1, callbacks=[spot])
trainer.fit(model, elastic_loader(dataset, batch_size=32, seed=7))
""",
        says="step 20 stored after ",
    ),
    Scene(
        page="docs/operating.md",
        program=f"""{TORCH}
from spot_plugins.bare import SpotLoop
from spot_plugins.data import elastic_loader
generator = torch.Generator().manual_seed(7)
first = generator.get_state()
with SpotLoop("run", every_steps=10) as spot:
    spot.register_model(model, optimizer, scheduler)
    loader = spot.register_loader(elastic_loader(dataset, batch_size=32, seed=7))
    << SimpleNamespace
    spot.resume()
    assert (spot.progress.step == 0) == torch.equal(generator.get_state(), first)
    for epoch in spot.epochs(1):
        for batch in spot.batches(loader):
            torch.rand(1, generator=generator)
            as_before()
            spot.after_step()
""",
        says="resumed from step 20",
        num_runs=2,
    ),
    Scene(
        page="docs/howto/monitoring.md",
        program=f"""{MODULE}
from urllib.request import urlopen
from lightning.pytorch import Callback, Trainer
from spot_plugins.data import elastic_loader
<< SpotCheckpoint
class Scrape(Callback):
    def on_train_epoch_end(self, *_):
        print(urlopen("http://127.0.0.1:9477/metrics").read().decode())
Trainer(max_epochs=1, callbacks=[callback, Scrape()]).fit(model, elastic_loader(dataset, batch_size=32, seed=7))
""",
        says="spot_",
    ),
    Scene(
        page="docs/howto/keep-the-best.md",
        program=MODULE.replace("model = Model()", "").replace(
            "    def configure",
            """\
    def train_dataloader(self):
        return elastic_loader(dataset, batch_size=32, seed=7)
    def val_dataloader(self):
        return DataLoader(dataset, batch_size=64)
    test_dataloader = val_dataloader
    def configure""",
        )
        + """
from spot_plugins.data import elastic_loader
model = Model()
<< ModelCheckpoint
""",
        says="resumed from step 600",
        num_runs=2,
    ),
    Scene(
        page="docs/howto/keep-the-best.md",
        program=f"""{ACCELERATE}
from types import SimpleNamespace
from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
class Best:
    loss = float("inf")
    def state_dict(self):
        return {{"loss": self.loss}}
    def load_state_dict(self, state):
        self.loss = state["loss"]
def validate(model):
    return 2.0 - spot.progress.step / 1200 if spot.progress.step <= 1200 else 3.0
best = Best()
loader = elastic_loader(dataset, batch_size=32, seed=7)
with SpotHook(accelerator, "s3://bucket/run-7", every_steps=300, keep_last=9) as spot:
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    spot.register("best", best)
    spot.resume()
    for epoch in spot.epochs(66):
        for batch in spot.batches(loader):
            as_before()
            spot.after_step()
            if spot.progress.step % 300 == 0:
                << with spot.pause()
weights = {{name: value.clone() for name, value in model.state_dict().items()}}
<< load_weights
assert list(spot.kept) == [1200]
assert not torch.equal(model.weight, weights["weight"])
kept = model.weight.clone()
<< spot show
model.load_state_dict(weights)
<< best.safetensors")
assert torch.equal(model.weight, kept)
""",
    ),
    Scene(
        page="docs/howto/resumed-accelerate.md",
        program=f"""{ACCELERATE}
from spot_plugins.accelerate import SpotHook
from spot_plugins.data import elastic_loader
small, large = (elastic_loader(dataset, batch_size=size, seed=7) for size in (64, 32))
def train():
    global batch
    batch = labeled
    as_before()
with SpotHook(accelerator, "s3://bucket/run-7", every_steps=10) as spot:
    model, optimizer, small, large, scheduler = accelerator.prepare(model, optimizer, small, large, scheduler)
    << class Best
    best.loss = min(best.loss, 1.0)
    loss = best.loss
    for epoch in spot.epochs(2):
        << repeat=True
    << init_trackers
assert steps_of("s3://bucket/run-7")[0] == 40
""",
        instead="train()",
        says="resumed from step 40",
        num_runs=2,
    ),
    Scene(
        page="docs/howto/resumed-lightning.md",
        program=f"""{MODULE}
import sys
from pathlib import Path
from lightning.pytorch import Trainer
from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint
Plain = Model
def model_of(fold):
    return Plain()
def loader_of(fold):
    return elastic_loader(dataset, batch_size=320, seed=fold)
<< fold in range(5)
assert [steps_of(f"s3://bucket/run-7/fold-{{fold}}")[0] for fold in range(5)] == [20] * 5
<< class Model
class Model(Model):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)
    validation_step, configure_optimizers = Plain.validation_step, Plain.configure_optimizers
    def train_dataloader(self):
        return loader_of(0)
    def val_dataloader(self):
        return DataLoader(dataset, batch_size=320)
<< import ModelCheckpoint
callbacks = [best, SpotCheckpoint("s3://bucket/noise", every_steps=1)]
model = Model()
num_epochs = 3 + Path("best").exists()
Path("best").mkdir(exist_ok=True)
Trainer(max_epochs=num_epochs, callbacks=callbacks).fit(model)
print(len(model.losses), "losses")
sys.argv = ["train.py", "fit", "--trainer.max_epochs=1"]
<< LightningCLI
""",
        instead="loss = (self.layer(batch[0]) + shift - batch[1]).square().mean()",
        says="8 losses",
        num_runs=2,
    ),
    Scene(
        page="docs/howto/torchrun-rescale.md",
        program="<< TCPStore\nassert store.port == 29400\n",
        says="the rendezvous is open",
    ),
]

LAUNCHED = """
from pathlib import Path
Path("train.py").write_text(
    "from spot_plugins.config import from_environment as read\\nread(every_steps=1, url='run')\\n"
)
<< spot run
"""
"""The program reads its settings, as every training does."""

LAUNCH_PAGES = ["accelerate", "aws", "azure", "gcp", "lambda", "lightning", "spot-run", "torchrun"]
LAUNCH_SCENES = [
    *[Scene(page=f"docs/howto/{name}.md", program=LAUNCHED) for name in LAUNCH_PAGES],
    Scene(page="docs/tutorials/accelerate.md", program=LAUNCHED),
    Scene(page="docs/notices.md", program=LAUNCHED.replace("spot run", "spot run --grace-seconds 110")),
]

TRAINING = """
import os
import torch
from torch import nn
from spot_plugins.config import SpotConfig
from spot_plugins.session import SpotSession
def train(url, last, keep=0, keep_last=3, signal=None, at=0):
    torch.manual_seed(7)
    inputs = torch.randn(32, 64)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with SpotSession(SpotConfig(url=url, every_steps=100, keep_last=keep_last)) as session:
        session.register_model(model, [optimizer])
        for step in range((session.resume() or 0) + 1, last + 1):
            nn.functional.mse_loss(model(inputs), inputs[:, :10]).backward()
            optimizer.step()
            optimizer.zero_grad()
            session.after_step(step)
            if step == keep:
                session.keep(step)
            if step == at:
                os.kill(os.getpid(), signal)
        session.finish(last)
"""

RUN = f"""
from multiprocessing import get_context
from pathlib import Path
from signal import SIGKILL, SIGTERM
{TRAINING}
def attempt(*arguments, **settings):
    process = get_context("fork").Process(target=train, args=arguments, kwargs=settings)  # torch is loaded already
    process.start()
    process.join()
def damage(run, step, change):
    (blob,) = Path(run, "steps").glob(f"{{step:010}}-*/*.safetensors")
    blob.write_bytes(change(blob.read_bytes()))
"""
"""The training whose run most commands look at, and its attempts, each of which is a process."""

QUICKSTART = """
from pathlib import Path
Path("train.py").write_text('''
<< class Regression
''')
whole = console
def console(block):
    for pause, run in ("sleep 15", "first"), ("sleep 7", "third"):  # a busy machine begins later
        block = block.replace(pause, f"until ls spot-run/{run}/steps > /dev/null 2>&1; do sleep 0.1; done")
    shown, printed = lines_of(block)
    lasting = ("spot_plugins: ", "exit code", "`Trainer.fit`", "wrote ")  # Lightning has lines of its own
    compare(*([each for each in lines if each.startswith(lasting)] for lines in (shown, printed)))
<< sleep 15
<< step 300,
<< nothing is left
console, whole = whole, console
<< find spot-run
<< spot show
<< sed -i s,
console = whole
<< sleep 7
"""

COMMAND_SCENES = [
    Scene(page="docs/quickstart.md", program=QUICKSTART),
    Scene(
        page="docs/commands/export.md",
        program=f"""{RUN}{MODULE}
from lightning.pytorch import Trainer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from spot_plugins.bare import SpotLoop
from spot_plugins.data import elastic_loader
from spot_plugins.lightning import SpotCheckpoint
def llama():
    torch.manual_seed(7)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=8, num_attention_heads=2, vocab_size=32)
    return LlamaForCausalLM(LlamaConfig(**sizes))
def tune(model, url):
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    words = torch.arange(8)[None]
    with SpotLoop(url, every_steps=1) as spot:
        spot.register_model(model, optimizer)
        spot.resume()
        for _ in range(2):
            model(input_ids=words, labels=words).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            spot.after_step()
    return {{name: tensor.clone() for name, tensor in model.state_dict().items()}}
def is_same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
attempt("spot-run/first", 700)
<< final.safetensors
<< --format dcp
expected = tune(llama(), "spot-run/llama")
llama().config.save_pretrained("base")
<< --config base
<< "final")
assert is_same(model.state_dict(), expected)
lora = get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "v_proj"]))
expected = tune(lora, "spot-run/lora")
lora.peft_config["default"].save_pretrained("lora-config")
<< --config lora-config
base = llama()
<< "adapter")
assert is_same(model.state_dict(), expected)
Trainer(max_epochs=1, callbacks=[SpotCheckpoint("spot-run/lightning", every_steps=2)]).fit(
    Model(), elastic_loader(dataset, batch_size=32, seed=7)
)
<< --format lightning
from accelerate import Accelerator
from spot_plugins.accelerate import SpotHook
def prepared():
    torch.manual_seed(7)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    return accelerator.prepare(model, optimizer, scheduler, elastic_loader(dataset, batch_size=80, seed=7))
accelerator = Accelerator(cpu=True)
with SpotHook(accelerator, "spot-run/accelerate", every_steps=4) as spot:
    model, optimizer, scheduler, loader = prepared()
    spot.resume()
    for _ in spot.epochs(1):
        for batch, wanted in spot.batches(loader):
            accelerator.backward(nn.functional.mse_loss(model(batch), wanted))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            spot.after_step()
expected = model.state_dict(), scheduler.state_dict()
<< --format accelerate
accelerator.free_memory()
model, _, scheduler, _ = prepared()
<< "final-state"
assert is_same(model.state_dict(), expected[0])
assert scheduler.state_dict() == expected[1]
""",
    ),
    Scene(
        page="docs/commands/cp.md",
        program=f"""{RUN}
attempt("spot-run/first", 500)
attempt("spot-run/first", 700)
<< put 2 objects
<< 2 were there
""",
    ),
    Scene(
        page="docs/commands/drill.md",
        program=f"""
from pathlib import Path
Path("train.py").write_text('''
import runpy, sys
sys.argv[1:] = ["none", "200"]
runpy.run_path("{ROOT}/tests/drills/programs/planted.py", run_name="__main__")
''')
<< test_my_training_survives
test_my_training_survives()
""",
    ),
    Scene(
        page="docs/commands/ls.md",
        program=f"""{RUN}
attempt("spot-run/first", 500, keep=200)
attempt("spot-run/first", 700)
bash("spot verify spot-run/first")
damage("spot-run/first", 200, lambda data: data[:100_000])
next(Path("spot-run/first/steps").glob("0000000500-*/rank-*")).unlink()
<< spot ls spot-run/first
""",
    ),
    Scene(
        page="docs/commands/ls.md",
        program=f"""{RUN}
attempt("s3://bucket/run-7", 100)
<< jq
""",
        needs="jq",
    ),
    Scene(
        page="docs/commands/prune.md",
        program=f"""{RUN}
attempt("spot-run/first", 500)
attempt("spot-run/first", 700)
<< --keep-last 1
""",
    ),
    Scene(
        page="docs/commands/show.md",
        program=f"""{RUN}
attempt("spot-run/first", 500)
attempt("spot-run/first", 700)
<< --step 700
<< --diff
""",
    ),
    Scene(
        page="docs/commands/verify.md",
        program=f"""{RUN}
attempt("spot-run/first", 500, keep=200)
attempt("spot-run/first", 700)
<< spot-run/first
attempt("spot-run/second", 500, keep=200)
attempt("spot-run/second", 700, keep_last=2)
damage("spot-run/second", 600, lambda data: data[:-1] + b"?")
damage("spot-run/second", 200, lambda data: data[:100_000])
<< spot-run/second
attempt("s3://bucket/run-7", 100)
<< mail
""",
    ),
    Scene(
        page="docs/commands/watch.md",
        program=f"""{RUN}
attempt("spot-run/first", 700, signal=SIGTERM, at=598)
attempt("spot-run/first", 1000)
def console(block):
    shown, printed = lines_of(block)
    assert printed == shown[-1:], printed
<< --spot-price
attempt("s3://bucket/run-7", 100)
<< final.safetensors
""",
    ),
    Scene(
        page="docs/howto/report.md",
        program=f"""{RUN}
def console(block):
    # A slow machine saves no money, and other things are to be changed on it.
    kept = [lines[: lines.index("What to change")] for lines in lines_of(block)]
    compare(*([line.replace(", -#", ", #") for line in lines] for lines in kept))
attempt("spot-run/first", 2400, signal=SIGKILL, at=1064)
attempt("spot-run/first", 2400, signal=SIGTERM, at=1802)
attempt("spot-run/first", 2400)
<< --spot-price
""",
    ),
    Scene(
        page="docs/plan.md",
        program=f"""{RUN}
attempt("s3://bucket/run-7", 100)
<< --next
""",
        says="spot",
    ),
]

SCENES = [*HOST_SCENES, *LAUNCH_SCENES, *COMMAND_SCENES]
