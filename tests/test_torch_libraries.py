"""fastopt.torch in what is built on torch.optim: Accelerate, Lightning, transformers, distributed tensors."""

import copy
import re
import runpy
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch_reference import batches, distance, loss_of, net

import fastopt.torch

pytestmark = pytest.mark.xdist_group("torch_libraries")

KWARGS = {"lr": 0.01, "weight_decay": 0.1}
CLASSES = [torch.optim.AdamW, fastopt.torch.AdamW]


def alike(models, tolerance=2e-6):
    return distance(*([p.detach() for p in model.parameters()] for model in models[::-1])) < tolerance


@pytest.mark.filterwarnings("ignore")  # what other libraries warn of among themselves
def test_accelerate(tmp_path):
    """Prepared, with gradient accumulation, clipping, a scheduler, saved and loaded."""
    accelerate = pytest.importorskip("accelerate", reason="comes with the extra torch-libraries")
    models = []
    for kind in CLASSES:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        model = net()
        optimizer = kind(model.parameters(), **KWARGS)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        for k, batch in enumerate(batches(8)):
            with accelerator.accumulate(model):
                accelerator.backward(loss_of(model, batch))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            if k == 3:
                folder = tmp_path / kind.__module__
                accelerator.save_state(folder)
                for p in model.parameters():
                    p.data.zero_()
                accelerator.load_state(folder)
        models.append(accelerator.unwrap_model(model))
    assert alike(models, 1e-5)


# -- Lightning ---------------------------------------------------------------------------------------------------------


def lightning_module(lightning, kind):
    """`net` as a LightningModule, with a rate that changes at every step."""

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, _):
            return loss_of(self.net, batch)

        def configure_optimizers(self):
            optimizer = kind(self.parameters(), **KWARGS)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return Module()


def fit_with_lightning(lightning, kind, folder, epochs, checkpoint=None, **options):
    """A trained module: accumulation, clipping, and a checkpoint after the last epoch."""
    saving = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        gradient_clip_val=0.1,
        callbacks=[saving],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    module = lightning_module(lightning, kind)
    trainer.fit(module, torch.utils.data.DataLoader(batches(4), batch_size=None), ckpt_path=checkpoint)
    return module, saving.best_model_path


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    """Two epochs, and one epoch that is taken up again from its checkpoint, by the same class or the other one."""
    lightning = pytest.importorskip("lightning", reason="comes with the extra torch-libraries")
    expected, _ = fit_with_lightning(lightning, torch.optim.AdamW, tmp_path / "whole", 2)
    moved = distance([p.detach() for p in expected.parameters()], [p.detach() for p in net().parameters()])
    assert moved > 1e-2
    for first in CLASSES:
        _, checkpoint = fit_with_lightning(lightning, first, tmp_path / first.__module__, 1)
        for second in CLASSES:
            found, _ = fit_with_lightning(lightning, second, tmp_path / "resumed", 2, checkpoint)
            assert found.trainer.global_step == 4
            assert alike([expected, found], 1e-5)


@pytest.mark.filterwarnings("ignore")
def test_lightning_clips_in_mixed_precision(tmp_path):
    """It does not where an optimizer says that it unscales by itself, as torch's with ``fused=True`` do."""
    lightning = pytest.importorskip("lightning", reason="comes with the extra torch-libraries")
    found = [fit_with_lightning(lightning, kind, tmp_path, 1, precision="bf16-mixed")[0] for kind in CLASSES]
    assert alike(found, 1e-3)


# -- Hugging Face's Trainer --------------------------------------------------------------------------------------------


@pytest.fixture
def transformers(monkeypatch):
    """The library, without the root of this repository among the folders of modules.

    ``python -m pytest`` puts it there, and transformers would take its folder ``kernels`` for a package of that name.
    """
    root = Path(__file__).parents[1]
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if Path(folder).resolve() != root])
    return pytest.importorskip("transformers", reason="comes with the extra torch-libraries")


VISIBLE = 1e-5
"""An ε that rounding is small beside: the biases of attention's keys have no other gradient."""


def tiny_gpt(transformers):
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "n_positions": 8, "n_embd": 16, "n_layer": 2, "n_head": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0))


def train_with_transformers(transformers, kind, folder, steps, checkpoint=None):
    """A trained model: accumulation, clipping, the Trainer's own schedule, a checkpoint at every second step."""
    model = tiny_gpt(transformers)
    tokens = torch.randint(31, (32, 8), generator=torch.Generator().manual_seed(1))
    arguments = transformers.TrainingArguments(
        folder,
        max_steps=8,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_grad_norm=0.1,
        warmup_steps=2,
        save_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        optimizers=(kind(model.parameters(), **KWARGS, eps=VISIBLE), None),
        callbacks=[stop_after(transformers, steps)],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == steps
    return model


def stop_after(transformers, steps):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop |= state.global_step >= steps

    return Stop()


@pytest.mark.filterwarnings("ignore")
def test_transformers(transformers, tmp_path):
    """Eight steps, and four that are taken up again from their checkpoint, by the same class or the other one."""
    expected = train_with_transformers(transformers, torch.optim.AdamW, tmp_path / "whole", 8)
    assert not alike([tiny_gpt(transformers), expected], 1e-2)
    for first in CLASSES:
        folder = tmp_path / first.__module__
        train_with_transformers(transformers, first, folder, 4)
        for second in CLASSES:
            resumed = train_with_transformers(
                transformers, second, tmp_path / "resumed", 8, str(folder / "checkpoint-4")
            )
            assert alike([expected, resumed], 1e-5)


# -- distributed tensors -----------------------------------------------------------------------------------------------


@pytest.fixture
def mesh(tmp_path):
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
        yield init_device_mesh("cpu", (1,))
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_fsdp2(mesh):
    """FSDP2's parameters are DTensors: elementwise rules work on the local parts."""
    from torch.distributed.fsdp import fully_shard

    models, optimizers = [], []
    for kind in CLASSES:
        model = net()
        fully_shard(model, mesh=mesh)
        optimizer = kind(model.parameters(), **KWARGS)
        for batch in batches(4):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        models.append(model)
        optimizers.append(optimizer)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert distance([q.detach().full_tensor()], [p.detach().full_tensor()]) < 2e-6
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert [type(value) for value in states[0][0].values()] == [type(value) for value in states[1][0].values()]
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("AdamW", {"clip_norm": 1.0}, "clip_norm needs whole parameters"),
        ("Lamb", {}, "Lamb needs whole parameters"),
        ("Adafactor", {}, "Adafactor needs whole parameters"),
        ("AdamW", {"flat": True}, "flat=True cannot move"),
    ],
)
def test_what_distributed_tensors_are_refused_for(mesh, name, options, message):
    from torch.distributed.tensor import Shard, distribute_tensor

    p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    optimizer = getattr(fastopt.torch, name)([p], **options)
    (p * p).sum().backward()
    with pytest.raises(TypeError, match=message):
        optimizer.step()


def test_the_example_trains_alike(monkeypatch, capsys):
    arguments = ["torch_gpt.py", "--steps=4", "--width=16", "--layers=1", "--batch=2"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "torch_gpt.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert float(re.search(r"greatest difference: (\S+)", printed)[1]) < 1e-5
    assert printed.count("the optimizer takes") == 2
