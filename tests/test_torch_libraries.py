"""fastopt.torch in what is built on torch.optim: Accelerate, distributed tensors, torch.compile's callers."""

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
    accelerate = pytest.importorskip("accelerate")
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
