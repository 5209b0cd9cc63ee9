"""A process of a training run under DeepSpeed, for tests/test_torch_deepspeed.py: it has children call `train`."""

import os

STEPS = 20


def model_of(torch):
    """The same small model each time."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 5)
    return torch.nn.Sequential(*layers)


def groups_of(model):
    """Two groups: ZeRO steps one after the other."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.ndim == 1], "lr": 5e-3},
    ]


def config_of(ours, stage, dtype):
    """DeepSpeed's configuration; what a user must add to it for fastopt's class."""
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}},
        "gradient_clipping": 1.0,
        "bf16": {"enabled": dtype == "bfloat16"},
    }
    if ours:
        config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return config


def meet(folder):
    """Wait for the other processes."""
    import deepspeed

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    deepspeed.init_distributed("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)


def engine_of(kind, stage, dtype):
    """An engine that trains `model_of` with an optimizer of this class."""
    import deepspeed
    import torch

    model = model_of(torch)
    optimizer = kind(groups_of(model), lr=1e-2, weight_decay=0.0)
    config = config_of(kind.__module__.startswith("fastopt"), stage, dtype)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def losses_of(engine, steps=STEPS):
    """Losses of steps on always the same batch, each process with its own part of it."""
    import torch

    generator = torch.Generator().manual_seed(1 + int(os.environ["RANK"]))
    x, y = (torch.randn(8, size, generator=generator) for size in (20, 5))
    found = []
    for _ in range(steps):
        loss = (engine(x.to(next(engine.module.parameters()).dtype)).float() - y).square().mean()
        engine.backward(loss)
        engine.step()
        found.append(loss.item())
    return found


def train(cases, folder):
    """Losses with DeepSpeed's class and with fastopt's, for each (stage, dtype); and after half a run with the other.

    The second half starts from the checkpoint that the engine of the first one has saved in ``folder``.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    import fastopt.torch

    meet(folder)
    kinds, found = {"theirs": DeepSpeedCPUAdam, "ours": fastopt.torch.DeepSpeedCPUAdam}, {}
    for stage, dtype in cases:
        runs = {}
        for name, kind in kinds.items():
            engine = engine_of(kind, stage, dtype)
            runs[name] = losses_of(engine, STEPS // 2)
            engine.save_checkpoint(f"{folder}/{name}-{stage}-{dtype}")
            runs[name] += losses_of(engine, STEPS // 2)
        for name, other in (("theirs, then ours", "ours"), ("ours, then theirs", "theirs")):
            engine = engine_of(kinds[other], stage, dtype)
            engine.load_checkpoint(f"{folder}/{name.split(',')[0]}-{stage}-{dtype}")
            runs[name] = runs[name.split(",")[0]][: STEPS // 2] + losses_of(engine, STEPS // 2)
        found[f"{stage} {dtype}"] = runs
    return found
