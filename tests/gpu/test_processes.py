"""New processes: importing, caching, and the same bits in each."""

import children
from on_gpu import require

require()

STEP = """
    import children, numpy as np, torch, fastopt
    rng = np.random.default_rng(0)
    params, grads = ([torch.from_numpy(rng.normal(size=size).astype(np.float32)).cuda() for size in (70_001, 33)]
                     for _ in range(2))
    optimizer = fastopt.Lamb(0.01, global_clipnorm=1.0, use_ema=True)
    optimizer.build(params)
    for _ in range(3):
        optimizer.apply(grads)
    children.report(bits=children.digest(*[param.cpu().numpy() for param in params]))
"""

ON_THE_CPU = """
    import sys, children, numpy as np, fastopt
    param = np.ones(1000, np.float32)
    optimizer = fastopt.Adam()
    optimizer.build([param])
    optimizer.apply([param.copy()])
    children.report(loaded=sorted({"torch", "cupy", "numba.cuda", "cuda.bindings.driver"} & set(sys.modules)))
"""


def run(code, **environment):
    """In a child that does not mind what frameworks warn of while they load."""
    return children.run(code, PYTHONWARNINGS="ignore", **environment)


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    first, second = (run(STEP, FASTOPT_CACHE_DIR=tmp_path) for _ in range(2))
    assert first["compilations"] > 0
    assert second["compilations"] == 0
    assert second["bits"] == first["bits"]


def test_a_damaged_cache_is_compiled_anew(tmp_path):
    first = run(STEP, FASTOPT_CACHE_DIR=tmp_path)
    for path in tmp_path.rglob("*.fastopt"):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    second = run(STEP, FASTOPT_CACHE_DIR=tmp_path)
    assert second["compilations"] == first["compilations"]
    assert second["bits"] == first["bits"]


def test_nothing_of_cuda_loads_for_steps_on_the_cpu():
    assert run(ON_THE_CPU)["loaded"] == []


def test_steps_on_the_cpu_where_the_gpu_is_hidden():
    assert run(ON_THE_CPU, CUDA_VISIBLE_DEVICES="")["loaded"] == []
