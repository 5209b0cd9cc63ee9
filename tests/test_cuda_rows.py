"""Adafactor and Muon on a GPU: the CPU's bits, tiles, who multiplies."""

import contextlib
import importlib.util
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fastopt.kernels.cpu import muon, tiles
from fastopt.kernels.cpu.muon import MuonScalars, Products
from fastopt.kernels.cpu.tiles import Tile, Tiles
from gpu_arrays import Interface
from gpu_twins import Twins

import fastopt

compiled = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda has no package for this platform"
)
over_dtypes = pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.full)])


# -- Adafactor's tiles on a GPU ----------------------------------------------------------------------------------------


def drawn(shapes, dtype, number):
    """Arrays, the same for the same number."""
    rng = np.random.default_rng(number)
    return [np.array(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.usefixtures("gpus")
@over_dtypes
def test_adafactor_in_many_tiles(dtype, monkeypatch):
    """Bands of tiles, and rows and columns that several tiles share."""
    monkeypatch.setattr(tiles, "LEAST_ROWS", 1)
    monkeypatch.setattr(tiles, "MOST_COLUMNS", 4)
    monkeypatch.setattr(tiles, "SMALL", 0)
    shapes = ((34, 5), (2, 3, 9), (9,))
    options = {"global_clipnorm": 0.5, "weight_decay": 0.1, "use_ema": True, "ema_overwrite_frequency": 2}
    twins = Twins(lambda: fastopt.Adafactor(**options), lambda: drawn(shapes, dtype, 0))
    for number in (1, 2):
        twins.step(lambda number=number: drawn(shapes, dtype, number))


@pytest.mark.usefixtures("gpus")
def test_adafactor_leaves_all_counters_at_zero(monkeypatch):
    monkeypatch.setattr(tiles, "LEAST_ROWS", 1)
    monkeypatch.setattr(tiles, "SMALL", 0)
    arrays = drawn([(5, 3), (2,)], "float32", 0)
    optimizer = fastopt.Adafactor()
    optimizer.build([Interface(array) for array in arrays])
    optimizer.apply([Interface(array.copy()) for array in arrays])
    (plan,) = optimizer._plans
    for work in plan.work._derived:
        counters = np.empty(work._counters.shape[1], np.int64)
        work.device.download(counters, work._counters.address, 0)
        assert not counters.any()


# -- tiles -------------------------------------------------------------------------------------------------------------


def tiles_of(*shapes):
    """The `Tiles` of parameters in C order."""
    parameters = [SimpleNamespace(array=np.empty(shape), axes=range(len(shape))) for shape in shapes]
    return Tiles(SimpleNamespace(parameters=parameters, rows=[0] * len(shapes)))


def covered(tile):
    """The elements of a tile, which are numbered in the segment."""
    if tile.rows == 0:
        return np.arange(tile.offset, tile.offset + tile.length)
    rows = tile.offset + np.arange(tile.matrices * tile.rows) * tile.width
    return (rows[:, None] + np.arange(tile.columns)).ravel()


@pytest.mark.parametrize(
    "shape", [(), (9000,), (7, 5), (300, 130), (130, 9000), (9000, 3), (600, 2, 3), (2, 70, 100), (1, 1), (3, 5000)]
)
def test_tiles_cover_each_element_once(shape):
    tiles = [Tile(*row) for row in tiles_of((3, 3), shape).table.tolist()]
    own = [tile for tile in tiles if tile.segment == 1]
    assert (own[0].first_tile, own[0].end_tile) == (1, len(tiles))
    assert all(tile.length == covered(tile).size for tile in own)
    assert np.array_equal(np.sort(np.concatenate([covered(tile) for tile in own])), np.arange(np.prod(shape)))


@pytest.mark.parametrize("shape", [(300, 130), (130, 9000), (600, 2, 3), (2, 70, 100)])
def test_tiles_share_no_scratch(shape):
    tiles = tiles_of((3, 3), shape, (70, 9000))
    for field, size, total in (
        ("row_sums", lambda tile: tile.matrices * tile.rows, tiles.scratch[1]),
        ("column_sums", lambda tile: tile.matrices * tile.columns, tiles.scratch[0]),
    ):
        parts = sorted((getattr(tile, field), size(tile)) for tile in (Tile(*row) for row in tiles.table.tolist()))
        ends = np.cumsum([size for _, size in parts])
        assert [first for first, _ in parts] == [0, *ends[:-1]]
        assert ends[-1] == total


def test_parameters_without_elements_have_no_tiles():
    assert tiles_of((0,), (0, 5), (3, 0, 2)).table.shape == (0, len(Tile._fields))


# -- who multiplies ----------------------------------------------------------------------------------------------------

SCALARS = MuonScalars(0.1, 1.0, 0.05, 1.0, 0.95, 0.2, 3.4445, -4.7750, 2.0315, 5.0, 0.0, 1e-7)


@over_dtypes
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (64, 64), (1, 9)])
def test_torch_multiplies_as_numpy_does(shape, dtype):
    torch = pytest.importorskip("torch")
    (direction,) = drawn([shape], dtype, 0)
    tensor, norm = torch.from_numpy(direction.copy()), np.linalg.norm(direction)
    divisor = torch.tensor([norm], dtype=tensor.dtype)
    Products(np, [direction], lambda size: np.empty(size, dtype)).orthogonalise(direction, norm, SCALARS)
    with torch.no_grad():
        products = Products(torch, [tensor], lambda size: torch.empty(size, dtype=tensor.dtype))
        products.orthogonalise(tensor, divisor, SCALARS)
    tolerance = 1e-4 if dtype == "float32" else 1e-11
    np.testing.assert_allclose(tensor.numpy(), direction, rtol=tolerance, atol=tolerance)


@compiled
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_torch_multiplies_float32_in_full(precision):
    torch = pytest.importorskip("torch")
    from fastopt.kernels.cuda.muon import full_float32_in_torch

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with full_float32_in_torch(torch):
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "high")
    finally:
        torch.set_float32_matmul_precision(before)


@compiled
def test_older_torch_multiplies_float32_in_full():
    from fastopt.kernels.cuda.muon import full_float32_in_torch

    settings = SimpleNamespace(allow_tf32=True)
    torch = SimpleNamespace(
        backends=SimpleNamespace(cuda=SimpleNamespace(matmul=settings)), get_float32_matmul_precision=lambda: "high"
    )
    with pytest.raises(ZeroDivisionError), full_float32_in_torch(torch):
        assert settings.allow_tf32 is False
        raise ZeroDivisionError
    assert settings.allow_tf32 is True


class CupyStandIn:
    """What is used of CuPy, on the host; ``events`` tells in which order."""

    def __init__(self):
        self.events, self.types = [], {np.float32: 7}
        self.cuda = SimpleNamespace(
            Device=self._entering("device"),
            ExternalStream=self._entering("stream"),
            Stream=SimpleNamespace(null=self._entering("null")(0)),
            get_current_stream=lambda: SimpleNamespace(ptr=5),
        )
        self._core = SimpleNamespace(
            get_compute_type=self.types.get,
            set_compute_type=self.types.__setitem__,
            _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=1),
        )

    def _entering(self, name):
        @contextlib.contextmanager
        def enter(number):
            self.events.append((name, number))
            yield

        return enter

    @staticmethod
    def asarray(region):
        return np.asarray(SimpleNamespace(__array_interface__=region.__cuda_array_interface__))


@compiled
def test_cupy_multiplies_on_the_stream_in_full(monkeypatch):
    from fastopt.kernels.cuda.muon import _Cupy

    cupy = CupyStandIn()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    library = _Cupy(SimpleNamespace(ordinal=1))
    memory = np.arange(6, dtype=np.float32)
    view = library.view(memory.ctypes.data, (2, 3), memory.dtype)
    view[1, 2] = 9
    assert memory[5] == 9

    def multiply():
        found.append((dict(cupy.types), cupy.events[-2:]))

    found = []
    library.enqueue(77, multiply)
    assert found == [({np.float32: 1}, [("device", 1), ("stream", 77)])]
    assert cupy.types == {np.float32: 7}
    for stream, entered in ((5, ("device", 1)), (0, ("null", 0))):
        library.enqueue(stream, multiply)
        assert found[-1][1][-1] == entered


@compiled
@pytest.mark.parametrize(
    ("current", "stream", "expected"),
    [(0, 0, []), (9, 9, []), (7, 0, ["the default"]), (0, 9, [9])],
)
def test_torch_multiplies_on_the_stream(current, stream, expected, monkeypatch):
    """An external stream of handle 0 is none: torch would make a new one."""
    torch = pytest.importorskip("torch")
    from fastopt.kernels.cuda.muon import _Torch

    entered = []

    @contextlib.contextmanager
    def enter(name):
        entered.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda ordinal: SimpleNamespace(cuda_stream=current))
    monkeypatch.setattr(torch.cuda, "default_stream", lambda ordinal: "the default")
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: handle)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    seen = []
    _Torch(SimpleNamespace(ordinal=1)).enqueue(stream, lambda: seen.append(list(entered)))
    assert seen == [expected]


@compiled
@pytest.mark.parametrize("name", ["numba", "jax", "dlpack", "fastopt"])
def test_muon_refuses_arrays_that_nobody_multiplies(name):
    from fastopt.kernels.cuda import muon

    plan = SimpleNamespace(
        place=SimpleNamespace(library=SimpleNamespace(name=name)), work=SimpleNamespace(device=SimpleNamespace())
    )
    with pytest.raises(TypeError, match=rf"arrays of {name} have none.*torch\.as_tensor, cupy\.asarray"):
        muon.Orthogonal(plan)


def test_a_direction_of_zeros_stays_zero():
    divisor = muon.divisor_of(np.float64(0), SCALARS, np.float32)
    assert divisor > 0
    direction = np.zeros((3, 4), np.float32)
    Products(np, [direction], lambda size: np.empty(size, np.float32)).orthogonalise(direction, divisor, SCALARS)
    assert not direction.any()
