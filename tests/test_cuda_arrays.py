"""Arrays on a GPU as the front end takes them in; a driver in the host's memory stands for the GPU."""

import copy
import gc
import pickle
import types
import weakref

import gpu_arrays
import numpy as np
import pytest
from fastopt.kernels.layout import DIRECT, FLOAT64, STAGED, ZERO
from fastopt.kernels.registry import Slot
from gpu_arrays import KINDS, STREAMS, DLPack, Interface
from numpy.lib.stride_tricks import as_strided
from rows import rows
from running_driver import finish_all

import fastopt
from fastopt import device, optimizers
from fastopt.device import CudaArray, Gpu
from fastopt.gradients import CudaGradients
from fastopt.parameters import collect
from fastopt.plan import Plan, allocate

pytestmark = pytest.mark.usefixtures("gpus")

F32 = np.float32


def zeros(*shape, dtype=F32):
    return np.zeros(shape, dtype)


def numbers(*shape, dtype=F32):
    return np.random.default_rng(3).normal(size=shape).astype(dtype)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def on_gpu(kind, monkeypatch):
    """A NumPy array as an array of the kind, over the same memory."""
    return lambda array: KINDS[kind](array, monkeypatch)


@pytest.fixture
def without_steps(monkeypatch):
    """Optimizers are built, but cannot step: what is around the step is tested here."""
    idle = types.SimpleNamespace(prepare=lambda **options: None)
    monkeypatch.setattr(Plan, "connect", lambda self, *tables: setattr(self, "engine", idle))


def memory(view):
    """The memory behind a `CudaArray`: here it is the host's."""
    finish_all()
    interface = {"shape": view.shape, "typestr": view.dtype.str, "data": (view.address, False)}
    interface |= {"strides": view.strides, "version": 3}
    return np.asarray(types.SimpleNamespace(__array_interface__=interface))


def foreign_memory(array):
    return memory(device.place_of(["array"], [array]).view("array", array))


# -- recognition -------------------------------------------------------------------------------------------------------


@rows("array", [numbers(3, 4), numbers(4, 3).T, numbers(2, 3, 4, dtype="float64"), zeros(), zeros(0, 3)])
def test_a_view_is_of_the_same_memory(on_gpu, array):
    given = on_gpu(array)
    (parameter,) = collect([given], None)
    view = parameter.array
    assert type(view) is CudaArray
    assert parameter.given is given
    assert (view.shape, view.dtype, view.ndim, view.size) == (array.shape, array.dtype, array.ndim, array.size)
    assert view.flags.writeable and view.flags.aligned
    if array.size:
        assert view.address == array.ctypes.data
        assert view.strides == array.strides
        memory(view)[...] = 7
        assert np.all(array == 7)


def test_the_place_is_where_the_arrays_users_work(on_gpu, kind):
    place = device.place_of(["a", "b"], [on_gpu(zeros(3)), on_gpu(zeros(2))])
    assert isinstance(place, Gpu) and place.ordinal == 0
    assert place.stream() == STREAMS[kind]
    assert device.place_of([], []) is device.place_of(["a"], [zeros(3)]) is device.HOST


def test_state_is_allocated_by_the_parameters_library(on_gpu, kind):
    weights = numbers(3, 4)
    parameters = collect({"w": on_gpu(weights), "b": on_gpu(numbers(4).copy())}, None)
    (average, _), (flat,) = allocate("average", Slot(copies_parameter=True), parameters)
    assert flat.address % 64 == 0 and flat.size == 32
    assert np.array_equal(average.copy_to_host(), weights)
    (row, other), _ = allocate("row", Slot(start=2.0, without=-1, axes=range(2, 65)), parameters)
    assert np.array_equal(row.copy_to_host(), [2, 2, 2]) and other is None
    owner = type(flat.owner).__name__
    assert owner == {"torch": "OnGpu", "cupy": "Array", "numba": "DeviceNDArray"}.get(kind, "Memory")


def test_slots_lie_as_their_parameters_do(on_gpu):
    weights = np.asfortranarray(numbers(3, 4))
    (view,), _ = allocate("average", Slot(copies_parameter=True), collect([on_gpu(weights)], None))
    assert view.strides == weights.strides
    assert np.array_equal(view.copy_to_host(), weights)


def test_an_array_is_never_copied_to_the_host_unasked(on_gpu):
    (parameter,) = collect([on_gpu(numbers(3))], None)
    with pytest.raises(TypeError, match="copy_to_host"):
        np.asarray(parameter.array)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copy_to_host"):
            copied(parameter.array)


def test_other_libraries_take_a_view_without_a_copy():
    weights = numbers(4, 3).T
    view = collect([Interface(weights)], None)[0].array
    interface = view.__cuda_array_interface__
    assert interface["data"] == (weights.ctypes.data, False)
    assert interface["strides"] == weights.strides
    assert interface["stream"] == 1
    assert collect([view], None)[0].array is view


def test_a_view_is_cut_and_turned_like_a_numpy_array():
    array = numbers(24)
    view = collect([Interface(array)], None)[0].array
    for ours, theirs in [
        (view[3:9], array[3:9]),
        (view[:12].reshape((3, 4)), array[:12].reshape(3, 4)),
        (view.reshape((2, 3, 4)).transpose((2, 0, 1)), array.reshape(2, 3, 4).transpose(2, 0, 1)),
        (view[::2], array[::2]),
        (view[::-1], array[::-1]),
        (view[5:5], array[5:5]),
    ]:
        assert ours.shape == theirs.shape and ours.strides == theirs.strides
        assert ours.flags.c_contiguous == theirs.flags.c_contiguous
        assert np.array_equal(ours.copy_to_host(), theirs)
    with pytest.raises(ValueError, match="cannot view"):
        view[::2].reshape((3, 4))


@pytest.mark.parametrize(("given", "stream"), [(None, 0), (1, 0), (2, 2), (12345, 12345)])
def test_the_interface_names_a_stream(given, stream):
    assert device.place_of(["a"], [Interface(zeros(3), stream=given)]).stream() == stream


def test_numbas_arrays_may_be_bound_to_a_stream(monkeypatch):
    place = device.place_of(["a"], [gpu_arrays.numba_array(zeros(3), monkeypatch, stream=90)])
    assert place.stream() == 90
    bound = [gpu_arrays.numba_array(zeros(3), monkeypatch, stream) for stream in (90, 91)]
    with pytest.raises(ValueError, match=r"a and b are bound to different streams"):
        device.place_of(["a", "b"], bound)


def test_version_2_of_the_interface():
    weights = numbers(3)
    assert collect([Interface(weights, version=2, strides=...)], None)[0].array.address == weights.ctypes.data


# -- DLPack ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("versioned", [True, False])
def test_an_export_is_given_back(versioned):
    given = DLPack(numbers(3, 2), versioned=versioned)
    view = device.libraries.LIBRARIES["dlpack"].view("gradient w", given, 5)
    assert given.streams == [5]
    assert view.stream() == 5
    assert view.writeable is versioned
    assert np.array_equal(view.copy_to_host(), given.memory)
    assert given.deleted == 0
    del view
    gc.collect()
    assert given.deleted == 1


def test_a_capsule_can_be_opened_once():
    capsule = DLPack(numbers(3)).__dlpack__(stream=1)
    device.dlpack.opened(capsule)
    with pytest.raises(ValueError, match="used_dltensor"):
        device.dlpack.opened(capsule)


def test_a_capsule_of_numpys_own():
    """An exporter that we did not write: the same structure, on the CPU."""
    array = numbers(2, 6)[:, ::2]
    found = device.dlpack.opened(array.__dlpack__(max_version=(1, 0)))
    assert (found.address, found.shape, found.strides) == (array.ctypes.data, (2, 3), (6, 2))
    assert (found.dtype, found.device_type, found.writeable) == ("float32", 1, True)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"device": (device.dlpack.CUDA_HOST, 0)}, TypeError, r"parameter 0.*numpy\.ndarray"),
        ({"versioned": False}, ValueError, "parameter 0.*read-only"),
        ({"read_only": True}, ValueError, "parameter 0.*read-only"),
        ({"code": 4, "bits": 32}, TypeError, "parameter 0.*float16, got bfloat32"),
        ({"lanes": 4}, TypeError, "parameter 0.*float32x4"),
        ({"major": 2}, TypeError, r"parameter 0.*DLPack.*1\.x, got 2\.0"),
        ({"data": None}, ValueError, "parameter 0.*no memory"),
    ],
)
def test_exports_that_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        collect([DLPack(zeros(3, 4), **changes)], None)


def test_a_bfloat16_is_its_bit_patterns():
    (parameter,) = collect([DLPack(zeros(3, 4, dtype=np.uint16), code=4)], None)
    assert (parameter.kept_as, parameter.array.dtype, parameter.dtype) == ("bfloat16", np.uint16, F32)


# -- what is refused ---------------------------------------------------------------------------------------------------


def misaligned():
    return np.frombuffer(bytearray(52), np.uint8)[1:49].view(F32)


@rows(
    ("array", "error", "message"),
    [
        (zeros(3, dtype=np.int64), TypeError, "parameter 0.*bfloat16 or float16, got int64"),
        (zeros(3, dtype=np.int16), TypeError, "parameter 0.*got int16: cast"),
        (zeros(6)[::2], ValueError, "parameter 0.*gaps.*copy"),
        (zeros(3, 8)[:, :4], ValueError, "parameter 0.*gaps"),
        (as_strided(zeros(1), (5,), (0,)), ValueError, "parameter 0.*overlaps itself"),
        (as_strided(zeros(6), (4, 3), (4, 4)), ValueError, "parameter 0.*overlaps itself"),
        (misaligned(), ValueError, "parameter 0.*not aligned"),
    ],
)
def test_parameters_that_are_refused(kind, on_gpu, array, error, message):
    with pytest.raises(error, match=message):
        optimizers.Adam().build([on_gpu(array)])


def read_only():
    array = zeros(3)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (Interface(read_only()), ValueError, "parameter 0.*read-only"),
        (Interface(zeros(6)[::-1]), ValueError, "parameter 0.*backwards"),
        (Interface(zeros(3, dtype=">f4")), ValueError, "parameter 0.*byte order"),
        (Interface(zeros(3), mask=Interface(zeros(3))), TypeError, "parameter 0.*mask"),
        (Interface(zeros(3), stream=0), ValueError, "parameter 0.*stream 0"),
        (Interface(zeros(3), data=(0, False)), ValueError, "parameter 0.*no memory"),
        (Interface(zeros(3), data=(None, False)), ValueError, "parameter 0.*no memory"),
        (Interface(zeros(3), typestr=...), TypeError, "parameter 0.*'typestr'"),
        (Interface(zeros(3), version=1), TypeError, "parameter 0.*version 1, expected 2 or 3"),
        (Interface(zeros(3), typestr="|V4"), TypeError, "parameter 0.*got"),
    ],
)
def test_interfaces_that_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        optimizers.Adam().build([given])


def test_memory_on_two_gpus(monkeypatch):
    here, there = zeros(3), zeros(3)
    monkeypatch.setattr("fastopt.kernels.cuda.driver.ordinal_of", lambda address: int(address == there.ctypes.data))
    with pytest.raises(ValueError, match=r"parameter a is on GPU 0, and parameter b on GPU 1.*optimizer per GPU"):
        optimizers.Adam().build({"a": Interface(here), "b": Interface(there)})


def test_host_and_gpu_at_once(on_gpu):
    host, gpu = zeros(3), on_gpu(zeros(3))
    with pytest.raises(TypeError, match=r"parameter gpu is on a CUDA device, and parameter host is not.*per device"):
        optimizers.Adam().build({"host": host, "gpu": gpu})
    with pytest.raises(TypeError, match="b is on a CUDA device"):
        fastopt.pack({"a": host, "b": gpu})


def test_two_libraries_at_once(monkeypatch):
    given = {name: KINDS[name](zeros(3), monkeypatch) for name in ("torch", "cupy")}
    with pytest.raises(TypeError, match="parameter torch is an array of torch, and parameter cupy of cupy"):
        optimizers.Adam().build(given)


def test_shared_memory(on_gpu):
    owner = zeros(10)
    with pytest.raises(ValueError, match="a and b share memory"):
        optimizers.Adam().build({"a": on_gpu(owner[:6]), "b": on_gpu(owner[5:])})


def test_tensors_that_are_not_in_memory(monkeypatch):
    torch = pytest.importorskip("torch")

    on_gpu = type(gpu_arrays.tensor(zeros(3), monkeypatch))
    sparse = type("Sparse", (on_gpu,), {"layout": torch.sparse_coo})
    with pytest.raises(TypeError, match=r"parameter 0.*torch.sparse_coo.*to_dense"):
        optimizers.Adam().build([torch.ones(3).as_subclass(sparse)])
    with pytest.raises(ValueError, match=r"parameter 0.*resolve_neg"):
        optimizers.Adam().build([torch._neg_view(torch.ones(3)).as_subclass(on_gpu)])
    with pytest.raises(TypeError, match=r"parameter 0.*float16, got complex64"):
        optimizers.Adam().build([torch.ones(3, dtype=torch.complex64).as_subclass(on_gpu)])


def test_losses_take_numpy_arrays(on_gpu):
    with pytest.raises(TypeError, match=r"y_pred.*CUDA device.*copy it to the host"):
        fastopt.losses.mean_squared_error(on_gpu(zeros(3)), on_gpu(zeros(3)))


# -- gradients ---------------------------------------------------------------------------------------------------------

SHAPES = {"w": (3, 4), "b": (4,), "s": ()}


class Scene:
    """Parameters of a kind, with what reads their gradients."""

    def __init__(self, on_gpu, dtype=F32, overrides=None, packed=False):
        self.on_gpu = on_gpu
        self.memory = {name: zeros(*shape, dtype=dtype) for name, shape in SHAPES.items()}
        self.params = {name: on_gpu(array) for name, array in self.memory.items()}
        self.buffer = fastopt.pack(self.params) if packed else None
        self.parameters = collect(self.buffer or self.params, overrides)
        state = [parameter.array for parameter in self.parameters]
        self.gradients = CudaGradients(self.parameters, self.buffer, state)

    def grads(self, **replaced):
        drawn = {name: np.asarray(numbers(*shape)) for name, shape in SHAPES.items()}
        return drawn | replaced

    def read(self, grads, zero=False):
        given = {name: self.on_gpu(array) if isinstance(array, np.ndarray) else array for name, array in grads.items()}
        self.kept = given
        return self.gradients.read(given, zero)

    @property
    def addresses(self):
        return self.gradients.table[0].tolist()


@pytest.fixture
def scene(on_gpu):
    return Scene(on_gpu)


def test_the_shape_of_a_familiar_gradient_is_checked(scene):
    scene.read(scene.grads())
    with pytest.raises(ValueError, match=r"gradient w: expected shape \(3, 4\)"):
        scene.read(scene.grads(w=zeros(4, 3)))
    scene.read(scene.grads())


@pytest.mark.parametrize("again", range(2))
def test_gradients_of_any_layout(scene, kind, again):
    step = 2 if kind == "torch" else -2  # torch knows no negative strides
    grads = scene.grads(w=numbers(4, 6, dtype="float64")[:, ::2].T, b=numbers(8)[::step])
    for _ in range(1 + again):
        assert scene.read(grads) == STAGED
    first, second, third = scene.gradients.table[1]
    assert scene.gradients.layouts[first : first + 6].tolist() == [FLOAT64, 2, 3, 4, *grads["w"].strides]
    assert scene.gradients.layouts[second + 2 : second + 4].tolist() == [4, 4 * step]
    assert third == DIRECT
    assert scene.read(scene.grads()) == 0


def test_missing_gradients(scene):
    with pytest.warns(UserWarning, match="no gradient for b"):
        scene.read(scene.grads(b=None))
    assert scene.addresses[1] == 0
    with pytest.raises(ValueError, match="all of them are None"):
        scene.read(dict.fromkeys(SHAPES))
    scene.read(scene.grads())
    assert all(scene.addresses)


@pytest.mark.parametrize("form", ["list", "tuple", "reordered"])
def test_structures(scene, form):
    grads = scene.grads()
    given = {name: scene.on_gpu(array) for name, array in grads.items()}
    shapes = {
        "list": list(given.values()),
        "tuple": tuple(given.values()),
        "reordered": dict(reversed(given.items())),
    }
    scene.gradients.read(shapes[form], False)
    assert scene.addresses == [array.ctypes.data for array in grads.values()]
    with pytest.raises(ValueError, match="structure"):
        scene.gradients.read([[given["w"], given["b"]], given["s"]], False)


@rows(
    ("changed", "error", "message"),
    [
        ({"w": [1.0]}, ValueError, "structure"),
        ({"w": 1.0}, TypeError, "gradient w: is an object of type float, and an array on GPU 0"),
        ({"b": zeros(4, dtype=np.int32)}, TypeError, "gradient b.*got int32"),
        ({"b": misaligned()[:4]}, ValueError, "gradient b.*not aligned"),
        ({"x": zeros(3)}, ValueError, "structure.*unexpected.*'x'"),
    ],
)
def test_gradients_that_are_refused(scene, changed, error, message):
    scene.read(scene.grads())
    with pytest.raises(error, match=message):
        scene.read(scene.grads(**changed))


def test_gradients_on_the_other_side(on_gpu, scene):
    with pytest.raises(TypeError, match="gradient w: is a NumPy array, and an array on GPU 0 is needed"):
        scene.gradients.read(scene.grads(), False)
    optimizer = optimizers.SGD()
    optimizer.build([zeros(3)])
    with pytest.raises(TypeError, match=r"gradient 0: is on a CUDA device, and a numpy.ndarray is needed"):
        optimizer.apply([on_gpu(zeros(3))])


def test_gradients_that_overlap_what_a_step_writes(scene):
    weights = scene.memory["w"]
    assert scene.read(scene.grads(w=weights)) == 0
    with pytest.raises(ValueError, match="gradient w: is the parameter itself"):
        scene.read(scene.grads(w=weights), zero=True)
    with pytest.raises(ValueError, match="gradient b: overlaps a parameter"):
        scene.read(scene.grads(b=weights[1]))


def test_a_gradient_around_a_parameter():
    """Its range of addresses covers the parameter's, yet they share no element."""
    owner = zeros(12)
    (parameter,) = collect([Interface(owner[4:6])], None)
    gradients = CudaGradients([parameter], None, [parameter.array])
    gradients.read([Interface(owner[3:9:4])], False)
    with pytest.raises(ValueError, match="gradient 0: overlaps"):
        gradients.read([Interface(owner[3:7:2])], False)


@pytest.mark.parametrize("overrides", [None, {"b": {"trainable": False}}])
def test_zeroing(on_gpu, overrides):
    scene = Scene(on_gpu, overrides=overrides)
    grads = scene.grads(w=numbers(4, 3).T)
    for _ in range(2):
        assert scene.read(grads, zero=True) == ZERO | STAGED
    assert bool(scene.addresses[1]) is (overrides is None)
    scene.gradients.zero()
    assert np.any(grads["b"]) is np.bool_(overrides is None)
    assert np.any(grads["w"])


def test_zeroing_what_gradients_share(scene):
    owner = numbers(16)
    grads = scene.grads(w=owner[:12].reshape(3, 4), b=owner[::4])
    assert scene.read(grads, zero=True) == STAGED
    scene.gradients.zero()
    assert not np.any(owner[[*range(12), 12]]) and np.all(owner[13:])
    assert not np.any(grads["s"])


def test_zeroing_after_a_skipped_step(scene):
    grads = scene.grads()
    scene.read(grads, zero=True)
    scene.gradients.zero_all(scene.kept)
    assert not any(np.any(array) for array in grads.values())


def test_zeroing_a_read_only_gradient():
    scene = Scene(Interface)
    grads = scene.grads(b=DLPack(numbers(4), versioned=False))
    scene.read(grads)
    with pytest.raises(ValueError, match="gradient b: is read-only, so zero_grads cannot zero it"):
        scene.read(grads, zero=True)


def test_a_freed_gradient(monkeypatch):
    scene = Scene(lambda array: gpu_arrays.tensor(array, monkeypatch))
    grads = {name: scene.on_gpu(array) for name, array in scene.grads().items()}
    scene.gradients.read(grads, False)
    monkeypatch.setattr(type(scene.gradients._library), "addresses", lambda self, arrays: [0 for _ in arrays])
    monkeypatch.setattr(CudaGradients, "check_parameters", lambda self: None)
    with pytest.raises(ValueError, match="gradient w: has no memory"):
        scene.gradients.read(grads, False)


def test_another_library_s_stream_is_waited_for(monkeypatch):
    scene = Scene(lambda array: gpu_arrays.tensor(array, monkeypatch))
    exporter = DLPack(numbers(4))
    grads = scene.grads(w=gpu_arrays.cupy_array(numbers(3, 4), monkeypatch), b=exporter)
    for _ in range(2):
        scene.read(grads)
        assert scene.gradients.streams_to_wait_for == [80]
        assert scene.addresses == [
            grads["w"].memory.ctypes.data, exporter.memory.ctypes.data, grads["s"].ctypes.data
        ]  # fmt: skip
        scene.gradients.release()
    assert exporter.streams == [70, 70]
    assert exporter.deleted == 1  # the GPU may still read the second export
    scene.read(scene.grads())
    assert scene.gradients.streams_to_wait_for == []


def test_gradients_in_another_stream_are_waited_for_every_time(monkeypatch):
    scene = Scene(lambda array: gpu_arrays.numba_array(array, monkeypatch))
    grads = scene.grads(b=gpu_arrays.numba_array(numbers(4), monkeypatch, stream=91))
    for _ in range(2):
        scene.read(grads)
        assert scene.gradients.streams_to_wait_for == [91]


def test_jax_exports_its_gradients():
    """Its ``__cuda_array_interface__`` names no stream, so that DLPack is the one to use."""

    class JaxArray(DLPack, Interface):
        __module__ = "jaxlib"

    exporter = JaxArray(numbers(4), versioned=False)
    scene = Scene(Interface)
    scene.read(scene.grads(b=exporter))
    assert scene.addresses[1] == exporter.memory.ctypes.data
    assert exporter.streams == [1]


def test_gradients_are_let_go(monkeypatch):
    scene = Scene(lambda array: gpu_arrays.tensor(array, monkeypatch))
    grads = [scene.on_gpu(array) for array in scene.grads().values()]
    memory = weakref.ref(grads[0])
    scene.gradients.read(grads, False)
    scene.gradients.release()
    del grads
    assert memory() is None


def test_a_parameter_that_moved(monkeypatch):
    torch = pytest.importorskip("torch")

    scene = Scene(lambda array: gpu_arrays.tensor(array, monkeypatch))
    scene.read(scene.grads())
    scene.params["b"].data = torch.zeros(4)
    with pytest.raises(RuntimeError, match="parameter b has moved in memory since build"):
        scene.read(scene.grads())


# -- flat buffers ------------------------------------------------------------------------------------------------------


def test_pack(on_gpu, kind):
    arrays = {"w": numbers(4, 3).T, "b": numbers(5), "s": np.array(3, F32)}
    given = {name: on_gpu(array) for name, array in arrays.items()}
    buffer = fastopt.pack(given)
    owner = type(next(iter(given.values()))) if kind not in ("interface", "dlpack") else CudaArray
    assert isinstance(buffer.flat, owner) and all(isinstance(view, owner) for view in buffer.arrays)
    assert foreign_memory(buffer.flat).ctypes.data % 64 == 0
    for name, view in buffer.views.items():
        assert np.array_equal(foreign_memory(view), arrays[name])
        assert np.shares_memory(foreign_memory(view), foreign_memory(buffer.flat))
    like = buffer.like()
    assert type(like.flat) is type(buffer.flat) and not np.any(foreign_memory(like.flat))
    again = pickle.loads(pickle.dumps(buffer))
    assert np.array_equal(foreign_memory(again.flat), foreign_memory(buffer.flat))
    assert again.segments == buffer.segments


def test_a_flat_gradient(on_gpu):
    scene = Scene(on_gpu, packed=True)
    grads = scene.buffer.like()
    base = foreign_memory(grads.flat).ctypes.data
    expected = [base + segment.offset * 4 for segment in scene.buffer.segments]
    for given in (grads, grads.flat, grads.views, list(grads.arrays)):
        assert scene.gradients.read(given, True) == ZERO
        assert scene.addresses == expected
    with pytest.raises(ValueError, match="flat gradient must have the 48 elements"):
        scene.gradients.read(scene.on_gpu(zeros(7)), False)


# -- what surrounds a step ---------------------------------------------------------------------------------------------


@pytest.fixture
def built(on_gpu, without_steps):
    arrays = {"w": numbers(3, 4), "b": np.asfortranarray(numbers(4, 5))}
    optimizer = optimizers.Adam(use_ema=True)
    optimizer.build({name: on_gpu(array) for name, array in arrays.items()})
    for name, row in optimizer.slots.items():
        for k, array in enumerate(row):
            optimizer._place.fill(array, len(name) + k)
    return optimizer, arrays


def test_excluding_by_identity(built):
    optimizer, _ = built
    optimizer.exclude_from_weight_decay(var_list=[optimizer._structure["w"]])
    assert [optimizer._decay_of(parameter) for parameter in optimizer._parameters] == [0.0, None]
    assert np.all(optimizer.slots["velocity"][1].copy_to_host() == 9)
    with pytest.raises(TypeError, match="one array"):
        optimizer.exclude_from_weight_decay(var_list=optimizer._structure["w"])


def test_copies_of_an_optimizer(built, kind):
    optimizer, arrays = built
    if kind in ("torch", "cupy"):
        twin = copy.deepcopy(optimizer)
        assert np.array_equal(foreign_memory(twin._structure["w"]), arrays["w"])
        assert np.all(twin.slots["velocity"][1].copy_to_host() == 9)
    else:
        with pytest.raises(TypeError, match="cannot copy or pickle its arrays: pack them"):
            copy.deepcopy(optimizer)


def test_one_array_alone(on_gpu, without_steps):
    optimizer = optimizers.SGD()
    optimizer.build(on_gpu(zeros(3)))
    assert [parameter.path for parameter in optimizer._parameters] == ["0"]
