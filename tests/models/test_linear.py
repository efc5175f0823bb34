from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from image_reward.models import linear as linear_module
from image_reward.models.blip import BlipConfig, ImageRewardNetwork
from image_reward.models.linear import VARIABLE, WAYS, Linear, gelu, linear_ways, make_fast, set_plain
from image_reward.scorers import ImageRewardScorer

IN, OUT = 192, 256  # enough weights for a choice to be made
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.002}
"""Of values of order one: some units in the last place."""
plain_linear = F.linear


def layer(out_features: int = OUT, bias: bool = True, dtype: torch.dtype = torch.float32) -> Linear:
    """One of a shape of its own has no choice made for it yet."""
    torch.manual_seed(0)
    return Linear(IN, out_features, bias).to(dtype).eval().requires_grad_(False)


def rows(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*(shape or (3, 5)), IN, generator=torch.Generator().manual_seed(1)).to(dtype)


def expected(layer: nn.Linear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return F.linear(x.double(), layer.weight.double(), bias)


def assert_right(y: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(y.double(), expected, rtol=ROUNDING[y.dtype], atol=ROUNDING[y.dtype])


@pytest.fixture(params=["auto", *WAYS])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


in_every_way = pytest.mark.usefixtures("way")


def replace_operation(monkeypatch: pytest.MonkeyPatch, operation: Callable[..., Tensor]) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=operation))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, operation: str, *_: Any) -> Tensor:
    """What oneDNN's operation computes."""
    y = plain_linear(x, weight, bias)
    return F.gelu(y) if operation == "gelu" else y


# --- values --------------------------------------------------------------------------------------------------------------------------


@in_every_way
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_every_way_computes_the_same(dtype: torch.dtype, bias: bool) -> None:
    linear = layer(bias=bias, dtype=dtype)
    for x in (rows(dtype=dtype), rows(1, dtype=dtype), rows(70, dtype=dtype), rows(0, dtype=dtype), rows(2, 0, dtype=dtype)):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                y = linear(x)
                assert (y.shape, y.dtype) == ((*x.shape[:-1], OUT), dtype)
                assert_right(y, expected(linear, x))
                assert_right(gelu(linear, x), F.gelu(expected(linear, x)))


@in_every_way
def test_inputs_of_other_kinds() -> None:
    linear = layer()
    x = rows(8, 6)
    for other in (x[:, :1], x.transpose(0, 1), rows(1)[0], x[::2], x.expand(2, 8, 6, IN)):
        assert_right(linear(other), expected(linear, other))
    assert_right(layer(dtype=torch.float32).double()(x.double()).float(), expected(linear, x))
    assert layer().to("meta")(x.to("meta")).shape == (8, 6, OUT)
    linear.weight = nn.Parameter(linear.weight.T.contiguous().T, requires_grad=False)
    assert_right(linear(x), expected(linear, x))
    for wrong in (x.double(), x[..., 1:], x.long()):
        with pytest.raises(RuntimeError, match=r"dtype|shapes"):
            linear(wrong)
    assert_right(linear(x), expected(linear, x))


@in_every_way
def test_autocast_computes_in_its_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = layer()(rows())
    assert y.dtype == torch.bfloat16
    assert_right(y, expected(layer(), rows()))


@in_every_way
def test_training_in_autocast_is_that_of_a_linear_layer() -> None:
    linear, plain = layer().requires_grad_(True), nn.Linear(IN, OUT)
    plain.load_state_dict(linear.state_dict())
    weights = torch.randn(150, OUT, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        results = [trained(one, rows(150), weights) for one in (linear, plain)]
    assert results[0][0].dtype == torch.bfloat16
    for tensor, right in zip(*results, strict=True):
        assert torch.equal(tensor, right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@in_every_way
def test_tensors_of_a_cuda_device() -> None:
    linear = layer().to("cuda")
    assert_right(gelu(linear, rows().to("cuda")).cpu(), F.gelu(expected(layer(), rows())))
    trained(linear.requires_grad_(True), rows(150).to("cuda"), torch.ones((), device="cuda"))
    assert linear.weight.grad is not None
    with pytest.raises(RuntimeError, match="device"):
        linear(rows())


@in_every_way
def test_the_default_type_does_not_matter() -> None:
    linear, x = layer(OUT + 1), rows()
    torch.set_default_dtype(torch.float64)
    try:
        y = linear(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == torch.float32
    assert_right(y, expected(linear, x))


@in_every_way
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of PyTorch's own rules for forward derivatives
def test_gradients() -> None:
    """Of the input alone, of weights switched on later, and forward."""
    linear, x = layer(), rows()
    with torch.no_grad():
        linear(x)
    x.requires_grad_()
    gelu(linear, linear(x)[..., :IN].contiguous()).sum().backward()
    assert x.grad is not None
    linear.requires_grad_(True)
    linear(rows()).sum().backward()
    torch.testing.assert_close(linear.bias.grad, torch.full((OUT,), 15.0))
    tangent = torch.ones_like(x)
    _, derivative = torch.func.jvp(layer(), (rows(),), (tangent,))
    assert_right(derivative, tangent.double() @ linear.weight.double().T)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = layer()(torch.autograd.forward_ad.make_dual(rows(), tangent))
        assert_right(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent.double() @ linear.weight.double().T)


def trained(linear: nn.Linear, x: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of all that is trained."""
    x = x.clone().requires_grad_()
    y = linear(x)
    (y * weights).sum().backward()
    return [
        y.detach(),
        *(tensor.grad for tensor in (x, *linear.parameters()) if tensor.grad is not None),
    ]


@in_every_way
@pytest.mark.parametrize("shape", [(150,), (2, 75), (3, 5, 10)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("out_features", [OUT, IN - 40], ids=["wider", "narrower"])
def test_gradients_of_training(shape: tuple[int, ...], bias: bool, out_features: int) -> None:
    """Of products that are large enough for a choice."""
    linear = layer(out_features, bias=bias).requires_grad_(True)
    x, weights = rows(*shape), torch.randn(*shape, out_features, generator=torch.Generator().manual_seed(2))
    reference = trained(copy.deepcopy(linear).double(), x.double(), weights.double())
    for tensor, right in zip(trained(linear, x, weights), reference, strict=True):
        assert float((tensor - right).abs().max()) <= 1e-5 * float(right.abs().max())


def test_training_takes_onednn_for_all_three_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "onednn")
    shapes: list[tuple[torch.Size, torch.Size]] = []

    def recorded(x: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
        shapes.append((x.shape, weight.shape))
        return multiply(x, weight, *arguments)

    replace_operation(monkeypatch, recorded)
    linear = layer(OUT + 12).requires_grad_(True)
    trained(linear, rows(100), torch.ones(()))
    shapes.clear()  # of the choice
    linear.weight.requires_grad_(True)
    trained(linear, rows(100), torch.ones(()))
    out = OUT + 12
    assert shapes == [((100, IN), (out, IN)), ((100, out), (IN, out)), ((IN, 100), (out, 100))]  # of the last, the transposed product
    shapes.clear()
    linear.weight.requires_grad_(False)  # frozen: no gradient of it is computed
    trained(linear, rows(100), torch.ones(()))
    assert len(shapes) == 2
    shapes.clear()
    trained(layer(OUT + 12).requires_grad_(True), rows(4), torch.ones(()))
    assert not shapes  # small products are ``F.linear``


def test_a_checkpointed_layer_is_computed_again_for_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception ends the recomputation where the layer keeps its tensors; it is no failure of the operation."""
    monkeypatch.setenv(VARIABLE, "onednn")
    calls: list[int] = []

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return multiply(*arguments)

    replace_operation(monkeypatch, counted)
    linear = layer(OUT + 20).requires_grad_(True)
    expected = trained(linear, rows(150), torch.ones(()))
    x = rows(150).requires_grad_()
    checkpoint(linear, x, use_reentrant=False).sum().backward()
    assert x.grad is not None
    assert_right(x.grad, expected[1].double())
    calls.clear()
    linear(rows(150))
    assert len(calls) == 1  # the way is still taken


@in_every_way
def test_second_derivatives() -> None:
    linear, x = layer().requires_grad_(True), rows(100).requires_grad_()
    (first,) = torch.autograd.grad((linear(x) ** 2).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), linear.weight)
    weight = linear.weight.detach().double().requires_grad_()
    wide = x.detach().double().requires_grad_()
    (right,) = torch.autograd.grad((F.linear(wide, weight, linear.bias.double()) ** 2).sum(), wide, create_graph=True)
    (right,) = torch.autograd.grad((right**2).sum(), weight)
    assert float((second - right).abs().max()) <= 1e-5 * float(right.abs().max())


@in_every_way
def test_a_weight_changed_between_forward_and_backward_is_noticed() -> None:
    linear, x = layer().requires_grad_(True), rows(100).requires_grad_()
    y = linear(x).sum()
    with torch.no_grad():
        linear.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_training_where_the_operation_is_missing_raises_or_computes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "onednn")
    calls: list[int] = []

    def broken(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 3:  # those of the choice
            raise RuntimeError("could not create a primitive")
        return multiply(*arguments)

    for number, operations in enumerate([{}, {"_linear_pointwise": broken}, {"_linear_pointwise": lambda *x: multiply(*x) + 1e-2}]):
        monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(**operations))
        linear = layer(OUT + 13 + number).requires_grad_(True)
        for _ in range(2):
            y = trained(linear, rows(100), torch.ones(()))[0]
            assert torch.equal(y, plain_linear(rows(100), linear.weight, linear.bias).detach())
    assert len(calls) == 4


@in_every_way
def test_function_transforms() -> None:
    linear = layer()
    assert_right(torch.vmap(linear)(rows()), expected(linear, rows()))
    gradient = torch.func.grad(lambda x: gelu(linear, x).sum())(rows())
    assert gradient.shape == rows().shape
    assert (gradient != 0).any()


def test_whoever_traces_or_counts_sees_a_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "onednn")
    linear, x = layer(), rows()
    with torch.no_grad():
        with FlopCounterMode(display=False) as flops:
            gelu(linear, x)
        assert flops.get_total_flops() == 2 * 15 * IN * OUT
        nodes = {str(node.target) for node in torch.export.export(linear, (x,)).graph.nodes}
        assert "aten.linear.default" in nodes
        compiled = torch.compile(lambda x: gelu(linear, x), backend="eager", fullgraph=True)
        assert_right(compiled(x), F.gelu(expected(linear, x)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer versions of PyTorch deprecate both
            traced, scripted = torch.jit.trace(linear, x), torch.jit.script(linear)
    assert "mkldnn" not in str(traced.graph)
    for other in (traced, scripted):
        assert_right(other(x), expected(linear, x))


# --- the choice ----------------------------------------------------------------------------------------------------------------------


def test_a_measurement_goes_on_until_the_fastest_times_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs make single products many times too slow, and the choice is still the right one."""
    clock = [0.0]
    monkeypatch.setattr(linear_module, "_clock", lambda: clock[0])
    times = {"slow": iter([0.0004, 0.0009, 0.0004]), "fast": iter([0.005, 0.0002, 0.0002])}
    calls = Counter[str]()

    def run(name: str) -> None:
        calls[name] += 1
        clock[0] += next(times[name])

    assert linear_module._measure({name: partial(run, name) for name in times}) == pytest.approx({"slow": 0.0004, "fast": 0.0002})
    assert calls == {"slow": 3, "fast": 3}


def test_a_measurement_ends_where_no_times_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(linear_module, "_clock", lambda: clock[0])

    def run(growth: float) -> None:
        clock[0] = clock[0] * growth + 1e-6

    seconds = linear_module._measure({"a": partial(run, 1.5), "b": partial(run, 1.6)})
    assert all(0 < taken < linear_module._MOST_SECONDS for taken in seconds.values())


def test_the_fastest_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *arguments: [function(*arguments) for _ in range(50)][-1]

    replace_operation(monkeypatch, slow(multiply))
    assert linear_ways(layer(OUT + 2)) == {"plain": 1}
    monkeypatch.setattr(F, "linear", slow(plain_linear))
    replace_operation(monkeypatch, multiply)
    assert linear_ways(layer(OUT + 3)) == {"onednn": 1}
    assert_right(layer(OUT + 3)(rows()), expected(layer(OUT + 3), rows()))
    assert linear_ways(layer(OUT + 2)) == {"plain": 1}  # measured once


@in_every_way
@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_build_without_the_operation(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    linear = layer(OUT + 4, dtype=dtype)
    for _ in range(2):
        assert_right(gelu(linear, rows(dtype=dtype)), F.gelu(expected(linear, rows(dtype=dtype))))
    linear.gelu_follows = True
    assert not {"onednn", "onednn-gelu"} & linear_ways(linear).keys()


def test_an_operation_that_raises_later_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def broken(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("could not create a primitive")
        return multiply(*arguments)

    monkeypatch.setenv(VARIABLE, "onednn")
    replace_operation(monkeypatch, broken)
    linear = layer(OUT + 5)
    for _ in range(3):
        assert torch.equal(linear(rows()), plain_linear(rows(), linear.weight, linear.bias))
    assert len(calls) == 2  # when it was chosen, and when it was used
    assert linear_ways(linear) == {"plain": 1}


def test_an_operation_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def tanh(*arguments: Any) -> Tensor:
        y = multiply(*arguments[:3], "none")
        return F.gelu(y, approximate="tanh") if arguments[3] == "gelu" else y + 1e-4

    replace_operation(monkeypatch, tanh)
    monkeypatch.setattr(F, "linear", lambda *arguments: [plain_linear(*arguments) for _ in range(50)][-1])
    linear = layer(OUT + 6)
    assert torch.equal(gelu(linear, rows()), F.gelu(plain_linear(rows(), linear.weight, linear.bias)))
    assert linear_ways(linear) == {"plain": 1}


def test_another_number_of_threads_is_another_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def counted(*arguments: Any) -> Tensor:
        measured.append(torch.get_num_threads())
        return multiply(*arguments)

    replace_operation(monkeypatch, counted)
    linear, threads = layer(OUT + 7), torch.get_num_threads()
    try:
        for number in (threads, threads + 1, threads):
            torch.set_num_threads(number)
            assert_right(linear(rows()), expected(linear, rows()))
    finally:
        torch.set_num_threads(threads)
    assert set(measured) == {threads, threads + 1}


def test_a_way_of_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "mkl")
    with pytest.raises(ValueError, match="IMAGE_REWARD_LINEAR must be auto or one of plain, onednn, onednn-gelu, float32, not 'mkl'"):
        layer()(rows())


def test_plain_is_plain(way: str, scorer: ImageRewardScorer) -> None:
    linear = layer()
    linear.plain = True
    assert torch.equal(linear(rows()), plain_linear(rows(), linear.weight, linear.bias))
    scorer.set_exact(True)
    assert linear_ways(scorer).keys() == {"plain"}
    scorer.set_exact(False)
    assert way == "auto" or linear_ways(scorer).keys() == {way}


@in_every_way
def test_oneDNN_switched_off() -> None:  # noqa: N802
    torch.backends.mkldnn.enabled = False
    try:
        assert torch.equal(layer()(rows()), plain_linear(rows(), layer().weight, layer().bias))
        assert linear_ways(layer()) == {"plain": 1}
    finally:
        torch.backends.mkldnn.enabled = True


@in_every_way
def test_threads_of_a_program() -> None:
    linear = layer(OUT + 8)
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(linear(rows()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert_right(result, expected(linear, rows()))


FORK = """
import multiprocessing, torch
from image_reward.models.linear import Linear
torch.set_num_threads(1)
layer, x = Linear(192, 256).requires_grad_(False), torch.randn(9, 192)
before = layer(x)

def child(results):
    results.put(bool((layer(x) - before).abs().max() < 1e-5))

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=child, args=(results,))
    process.start()
    assert results.get()
    process.join()
    assert process.exitcode == 0
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_after_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "onednn")
    subprocess.run([sys.executable, "-c", FORK], check=True)


# --- an nn.Linear in every other respect ---------------------------------------------------------------------------------------------


@in_every_way
def test_it_is_a_linear_layer_to_others() -> None:
    linear = layer()
    assert isinstance(linear, nn.Linear)
    assert list(linear.state_dict()) == ["weight", "bias"]
    assert repr(linear) == repr(nn.Linear(IN, OUT))
    plain = nn.Linear(IN, OUT)
    plain.load_state_dict(linear.state_dict(), strict=True)
    y = linear(rows())
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear)), linear.share_memory()):
        assert torch.equal(other(rows()), y)
    linear.weight.data.mul_(2)  # which nothing announces
    assert_right(linear(rows()), expected(linear, rows()))


@in_every_way
def test_hooks_and_patches_take_effect_before_a_gelu() -> None:
    linear = layer()
    handle = linear.register_forward_hook(lambda _, inputs, output: output + 1)  # noqa: ARG005
    assert_right(gelu(linear, rows()), F.gelu(expected(linear, rows()) + 1))
    handle.remove()
    linear.forward = lambda x: x  # type: ignore[method-assign]
    assert torch.equal(gelu(linear, rows()), F.gelu(rows()))
    assert torch.equal(gelu(nn.Identity(), rows()), F.gelu(rows()))


def test_a_network_is_made_fast_in_place() -> None:
    network = nn.Sequential(nn.Linear(IN, OUT), nn.Sequential(nn.Linear(OUT, 8)), nn.Identity())
    before = list(network.parameters())
    make_fast(network)
    assert linear_ways(network).keys() <= WAYS.keys()
    assert sum(linear_ways(network).values()) == 2
    assert all(one is other for one, other in zip(network.parameters(), before, strict=True))
    set_plain(network, True)
    assert linear_ways(network) == {"plain": 2}


def test_a_network_without_storage_has_plain_layers() -> None:
    with torch.device("meta"):
        network = ImageRewardNetwork(BlipConfig(vision_layers=1, text_layers=1))
    assert linear_ways(network).keys() == {"plain"}
