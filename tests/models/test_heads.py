from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from image_reward.models.heads import LinearHead, is_changed


@pytest.fixture
def head() -> LinearHead:
    torch.manual_seed(0)
    return LinearHead(48).eval()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(5, 48, generator=torch.Generator().manual_seed(1))


def test_its_layers_are_the_published_ones() -> None:
    names = {name: tuple(tensor.shape) for name, tensor in LinearHead(768).state_dict().items()}
    widths = {0: (1024, 768), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}  # dropout stands between the first four
    assert names == {
        f"layers.{i}.{kind}": shape if kind == "weight" else shape[:1] for i, shape in widths.items() for kind in ("weight", "bias")
    }
    assert [layer.p for layer in LinearHead(768).layers if isinstance(layer, nn.Dropout)] == [0.2, 0.2, 0.1]


def test_folded_it_gives_what_its_layers_give(head: LinearHead, features: Tensor) -> None:
    torch.testing.assert_close(head(features), head.layers(features), rtol=0, atol=1e-5)
    weight, bias = head.double().affine()
    torch.testing.assert_close(features @ weight.T + bias, head.layers(features.double()).float(), rtol=0, atol=1e-5)


def test_folded_it_has_the_gradients_of_its_layers(head: LinearHead, features: Tensor) -> None:
    features.requires_grad_()

    def gradients(rewards: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(rewards.square().sum(), [features, *head.parameters()]))

    for folded, plain in zip(gradients(head(features)), gradients(head.layers(features)), strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


def test_in_training_dropout_is_active_and_the_mean_is_what_it_gives_without(head: LinearHead, features: Tensor) -> None:
    expected = head(features[:1])
    head.train()
    torch.manual_seed(0)
    samples = head(features[:1].expand(20_000, -1))
    assert not torch.equal(samples[0], samples[1])
    assert (samples.mean() - expected).abs() < 5 * samples.std() / 20_000**0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_computes_in_float32_whatever_the_features_and_the_surroundings(head: LinearHead, features: Tensor, dtype: torch.dtype) -> None:
    half = features.to(dtype)
    expected = head(half.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(half), expected)
    assert head(half).dtype == torch.float32


def test_what_programs_put_into_it_takes_effect(head: LinearHead, features: Tensor) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    plain, last = head(features), head.layers[-1]
    assert isinstance(last, nn.Linear)
    doubled = Doubled(last.in_features, last.out_features)
    doubled.load_state_dict(last.state_dict())
    head.layers[-1] = doubled
    torch.testing.assert_close(head(features), 2 * plain, rtol=0, atol=1e-5)
    head.layers[-1] = last
    head.layers.append(nn.Tanh())
    torch.testing.assert_close(head(features), plain.tanh(), rtol=0, atol=1e-5)


def test_layers_that_programs_hook_or_replace_are_called(head: LinearHead, features: Tensor) -> None:
    plain = head(features)
    seen: list[Tensor] = []
    for layer in (*head.layers, head.layers):
        hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        torch.testing.assert_close(head(features), plain, rtol=0, atol=1e-5)
        hook.remove()
    assert [output.shape[1] for output in seen] == [1024, 1024, 128, 128, 64, 64, 16, 1, 1]
    last = head.layers[-1]
    last.forward = lambda x: x.sum(dim=1, keepdim=True)  # type: ignore[method-assign]
    torch.testing.assert_close(head(features), head.layers[:-1](features).sum(dim=1, keepdim=True), rtol=0, atol=1e-5)
    del last.forward
    other = nn.Linear(48, 1)
    head.layers = other  # type: ignore[assignment]
    assert torch.equal(head(features), other(features))


def test_every_kind_of_hook_is_noticed_until_it_is_removed() -> None:
    layer = nn.Linear(2, 2)
    assert not is_changed(layer)
    for add in (
        lambda: layer.register_forward_hook(lambda _module, _inputs, _output: None),
        lambda: layer.register_forward_pre_hook(lambda _module, _inputs: None),
        lambda: layer.register_full_backward_hook(lambda _module, _into, _out: None),
        lambda: layer.register_full_backward_pre_hook(lambda _module, _out: None),
    ):
        hook = add()
        assert is_changed(layer)
        hook.remove()
        assert not is_changed(layer)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert is_changed(layer)


def test_a_narrow_head_needs_no_dropout_between_its_layers() -> None:
    assert [type(layer).__name__ for layer in LinearHead(8, (4,)).layers] == ["Linear", "Dropout", "Linear"]
    assert [type(layer).__name__ for layer in LinearHead(8, ()).layers] == ["Linear"]
    assert LinearHead(8, ())(torch.ones(3, 8)).shape == (3, 1)
