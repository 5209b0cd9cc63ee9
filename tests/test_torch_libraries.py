"""fastopt.torch in what is built on torch.optim: Accelerate, Lightning, transformers, distributed tensors."""

import copy
import itertools
import math
import re
import runpy
import sys
import warnings
from pathlib import Path

import children
import pytest
from needs_torch import torch
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


@pytest.mark.filterwarnings("ignore")
def test_options_that_come_after_the_first_step_of_distributed_tensors(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    optimizer = fastopt.torch.SGD([p], lr=0.1)
    p.grad = distribute_tensor(torch.full((4, 3), 2.0), mesh, [Shard(0)])
    optimizer.step()
    optimizer.clip_norm = 1.0
    optimizer.step()
    assert optimizer.last_grad_norm == pytest.approx(48**0.5, rel=1e-15)
    p.grad = distribute_tensor(torch.full((4, 3), math.nan), mesh, [Shard(0)])
    before = p.detach().full_tensor().clone()
    optimizer.nonfinite = "skip"
    optimizer.step()
    optimizer.nonfinite = "raise"
    with pytest.raises(FloatingPointError, match="parameter 0 of group 0 is not finite"):
        optimizer.step()
    assert torch.equal(p.detach().full_tensor(), before)


@pytest.mark.filterwarnings("ignore")
def test_what_processes_cannot_agree_on(mesh, monkeypatch):
    from torch.distributed.tensor import Partial, Shard, distribute_tensor

    p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    p.grad = p.detach().clone()
    optimizer = fastopt.torch.SGD([p], lr=0.1, clip_norm=1.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "get_backend_config", lambda group: "cuda:nccl")
        with pytest.raises(TypeError, match=r"clip_norm has the processes exchange .*init_process_group\(\"cpu:gloo"):
            optimizer.step()
    with monkeypatch.context() as patch:
        patch.setattr("fastopt.torch.distributed.device_of", lambda tensor: torch.device("cuda"))
        with pytest.raises(TypeError, match=r"clip_norm sees this process's part .* on a GPU: there use"):
            optimizer.step()
    summed = torch.nn.Parameter(type(p.data).from_local(torch.ones(4, 3), mesh, [Partial()]))
    summed.grad = summed.detach().clone()
    optimizer = fastopt.torch.SGD([summed], lr=0.1, nonfinite="skip")
    with pytest.raises(TypeError, match="nonfinite='skip' takes parameters that are divided or replicated"):
        optimizer.step()
    assert float(p.detach().full_tensor().sum()) == 12.0


# -- several processes -------------------------------------------------------------------------------------------------

EARLY = "fused_backward=True steps with each process's own gradients, before DistributedDataParallel"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize(
    ("first", "options"),
    [
        *itertools.product(("optimizer", "wrapper"), ({}, {"static_graph": True}, {"gradient_as_bucket_view": True})),
        ("step", {}),  # of a static graph there is no trace then
    ],
)
def test_fused_backward_is_refused_where_gradients_are_reduced_later(first, options):
    """The reference of torch's DDP: hooks on parameters see gradients that are this process's own."""
    model = net()
    if first == "wrapper":
        wrapped = torch.nn.parallel.DistributedDataParallel(model, **options)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, fused_backward=True)
    batch = batches(1)[0]
    if first == "step":
        loss_of(model, batch).backward()
        optimizer.step()
    if first != "wrapper":
        wrapped = torch.nn.parallel.DistributedDataParallel(model, **options)
    if first == "step":
        loss_of(wrapped, batch).backward()
        with pytest.raises(RuntimeError, match=EARLY):
            optimizer.step()
        return
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=EARLY):
        loss_of(wrapped, batch).backward()
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.filterwarnings("ignore")
def test_fused_backward_of_what_no_wrapper_reduces(mesh):
    """Beside a DDP module and inside FSDP2, which reduces before it calls hooks; as torch.optim.SGD's steps."""
    from torch.distributed.fsdp import fully_shard

    torch.nn.parallel.DistributedDataParallel(beside := net())
    models = []
    for kind, options in ((torch.optim.SGD, {}), (fastopt.torch.SGD, {"fused_backward": True})):
        for shard in (False, True):
            model = net()
            if shard:
                fully_shard(model, mesh=mesh)
            optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, **options)
            for batch in batches(3):
                loss_of(model, batch).backward()
                optimizer.step()
                optimizer.zero_grad()
            models.append([getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()])
    assert max(distance(models[0], other) for other in models[1:]) < 2e-6
    assert all(map(torch.equal, beside.parameters(), net().parameters()))


@pytest.mark.filterwarnings("ignore")
def test_evaluation_of_an_fsdp2_model(mesh):
    """What the model computes is what it computes with the averages, by `torch.func.functional_call`."""
    from torch.distributed.fsdp import fully_shard

    x = batches(1)[0][0].float()
    model = net()
    fully_shard(model, mesh=mesh)
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.5, ema=0.5)
    for batch in batches(3):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    names = [name for name, _ in model.named_parameters()]
    states = [optimizer.state[p]["ema"] for p in model.parameters()]
    averages = {name: state.full_tensor() for name, state in zip(names, states, strict=True)}
    trained = [p.full_tensor().detach() for p in model.parameters()]
    with torch.no_grad():
        expected = torch.func.functional_call(net(), averages, x)
        with optimizer.evaluation_weights():
            assert torch.allclose(model(x), expected)
        before = model(x)
        assert not torch.allclose(before, expected)
        with pytest.raises(RuntimeError, match=r"model.reshard\(\) before evaluation_weights\(\), or make it by fully"):
            optimizer.evaluation_weights().__enter__()
        model.reshard()
        with pytest.raises(KeyError), optimizer.evaluation_weights():
            assert torch.allclose(model(x), expected)
            raise KeyError
        assert torch.equal(model(x), before)
        model.reshard()
        handle = model.conv.register_forward_hook(lambda *_: 1 / 0)
        failed = pytest.raises(RuntimeError, match=r"call model.reset_iter_state\(\): a forward pass has failed")
        with failed as found, optimizer.evaluation_weights():
            model(x)
        assert isinstance(found.value.__context__, ZeroDivisionError)
        handle.remove()
        model.reset_iter_state()
        assert torch.equal(model(x), before)
        model.reshard()
    assert all(map(torch.equal, trained, (p.full_tensor() for p in model.parameters())))


@pytest.mark.filterwarnings("ignore")
def test_schedule_free_modes_of_an_fsdp2_model(mesh):
    from torch.distributed.fsdp import fully_shard

    model = net()
    fully_shard(model, mesh=mesh)
    optimizer = fastopt.torch.ScheduleFreeAdamW(model.parameters())
    batch = batches(1)[0]
    with torch.no_grad():
        loss_of(model, batch)
    optimizer.train()
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.eval()
    with torch.no_grad():
        loss_of(model, batch)
    with pytest.raises(RuntimeError, match=r"call model.reshard\(\) before train\(\) of the optimizer"):
        optimizer.train()
    assert not optimizer.param_groups[0]["train_mode"]
    model.reshard()
    optimizer.train()


@pytest.mark.filterwarnings("ignore")
def test_an_fsdp2_model_that_reshards_itself(mesh):
    """Nothing is refused, and what it computes are the weights that the optimizer says."""
    from torch.distributed.fsdp import fully_shard

    x, model = batches(1)[0][0].float(), net()
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    optimizer = fastopt.torch.ScheduleFreeAdamW(model.parameters(), lr=0.1, ema=0.5)
    optimizer.train()
    for batch in batches(2):
        loss_of(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def is_right():
        weights = {name: p.full_tensor() for name, p in model.named_parameters()}
        return torch.allclose(model(x), torch.func.functional_call(net(), weights, x))

    with torch.no_grad():
        assert is_right()
        optimizer.eval()
        assert is_right()
        with optimizer.evaluation_weights():
            assert is_right()
        assert is_right()
        optimizer.train()
        assert is_right()


@pytest.mark.filterwarnings("ignore")
def test_distributed_tensors_of_no_module_beside_an_fsdp2_model(mesh):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))

    holder, model = Holder(), net()
    fully_shard(model, mesh=mesh)
    optimizer = fastopt.torch.SGD(holder.parameters(), lr=0.1, ema=0.9)
    (holder.p * holder.p).sum().backward()
    optimizer.step()
    model(batches(1)[0][0].float())
    with optimizer.evaluation_weights():
        pass


TWO_PROCESSES = """
    import children, torch, fastopt.torch
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method="file://{store}", rank={rank}, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))

    def model():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))

    def train(model, optimizer):
        for k in range(3):
            batch = torch.randn(2, 3, generator=torch.Generator().manual_seed({rank} + 2 * k))
            model(batch).pow(2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [getattr(p, "full_tensor", lambda p=p: p)().detach().tolist() for p in model.parameters()]

    def torchs():
        wrapped = torch.nn.parallel.DistributedDataParallel(model())
        return train(wrapped, torch.optim.SGD(wrapped.parameters(), lr=0.1))

    def refused():
        wrapped = torch.nn.parallel.DistributedDataParallel(own := model())
        optimizer = fastopt.torch.SGD(own.parameters(), lr=0.1, fused_backward=True)
        try:
            train(wrapped, optimizer)
        except RuntimeError as error:
            assert [p.tolist() for p in own.parameters()] == [p.tolist() for p in model().parameters()]
            return str(error)

    def sharded():
        fully_shard(own := model(), mesh=mesh)
        return train(own, fastopt.torch.SGD(own.parameters(), lr=0.1, fused_backward=True))

    children.report(torchs=torchs(), refused=refused(), sharded=sharded())
    dist.destroy_process_group()
"""


@pytest.mark.full
def test_two_processes(tmp_path):
    """The way out of the refusal: under FSDP2 both end where torch.optim.SGD ends under DDP."""
    given = {"store": tmp_path / "store"}
    both = [children.start(TWO_PROCESSES.format(rank=k, **given), PYTHONWARNINGS="ignore") for k in range(2)]
    found = [children.finish(child) for child in both]
    expected = found[0]["torchs"]
    for each in found:
        assert each["refused"].startswith(EARLY)
        for one, other in zip(each["sharded"], expected, strict=True):
            torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


# -- files -------------------------------------------------------------------------------------------------------------


def test_flat_parameters_are_saved_alone(tmp_path):
    """By torch.save as by safetensors, whose `save_model` refuses tensors that are views of larger ones."""
    safetensors = pytest.importorskip("safetensors.torch", reason="comes with the extra torch-libraries")
    model = net()
    optimizer = fastopt.torch.SGD(model.parameters(), lr=0.1, flat=True)
    loss_of(model, batches(1)[0]).backward()
    optimizer.step()
    sizes = []
    for kind in (model, copy.deepcopy(model)):
        torch.save(kind.conv.weight, tmp_path / "weight")
        sizes.append((tmp_path / "weight").stat().st_size)
    assert sizes[0] == sizes[1]
    safetensors.save_model(model, tmp_path / "model")
    again = net()
    safetensors.load_model(again, tmp_path / "model")
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert not torch.equal(model.conv.weight, net().conv.weight)


def test_the_example_trains_alike(monkeypatch, capsys):
    arguments = ["torch_gpt.py", "--steps=4", "--width=16", "--layers=1", "--batch=2"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(Path(__file__).parents[1] / "examples" / "torch_gpt.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert float(re.search(r"greatest difference: (\S+)", printed)[1]) < 1e-5
    assert printed.count("the optimizer takes") == 2
