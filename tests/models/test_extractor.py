"""The extractor: its shortcut is exact, its tokens stand where they should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_msamil.models.configs import ExtractorConfig
from napari_msamil.models.extractor import Extractor
from napari_msamil.models.layers import EncoderLayer
from napari_msamil.models.positions import sinusoid, sinusoid_2d

TINY = {"encoder": "test_efficientnet", "out_dim": 32, "heads": 4, "hidden": 64}


def make_layer(dim: int = 1536, *, dtype: torch.dtype = torch.float32, dropout: float = 0.1) -> EncoderLayer:
    torch.manual_seed(0)
    layer = EncoderLayer(dim, heads=8, hidden=2048, dropout=dropout).to(dtype).eval()
    with torch.no_grad():
        for weight in layer.parameters():  # norms and biases away from 1 and 0, scores away from uniform
            weight += torch.randn_like(weight) * 0.1
    return layer


def make_extractor(*, patch_px: int = 96, **changes: object) -> Extractor:
    torch.manual_seed(0)
    return Extractor(ExtractorConfig.model_validate(TINY | changes), patch_px=patch_px).eval()


def plain(net: Extractor, patches: Tensor) -> Tensor:
    """Every layer computed for every token, the class token picked out at the end."""
    x = net.tokens(patches)
    for layer in net.layers:
        x = layer(x)
    features: Tensor = net.project_out(net.norm(x[:, 0]))
    return features


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_first_token_alone_equals_the_whole_layer(dtype: torch.dtype, tolerance: float) -> None:
    layer, x = make_layer(dtype=dtype), torch.randn(2, 257, 1536, dtype=dtype)
    with torch.inference_mode():
        whole, first = layer(x)[:, 0], layer.first_token(x)
    assert float((whole - first).abs().max() / whole.abs().max()) < tolerance


def test_first_token_alone_has_the_same_gradient() -> None:
    layer = make_layer(64, dtype=torch.float64)
    x = torch.randn(2, 9, 64, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 64, dtype=torch.float64)
    weights = [x, *layer.parameters()]
    whole = torch.autograd.grad((layer(x)[:, 0] * target).sum(), weights)
    first = torch.autograd.grad((layer.first_token(x) * target).sum(), weights)
    for a, b in zip(whole, first, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_first_token_keeps_the_value_bias_right_under_attention_dropout() -> None:
    layer, x = make_layer(64, dtype=torch.float64), torch.randn(2, 9, 64, dtype=torch.float64)

    def drop(t: Tensor) -> Tensor:  # a dropout that is the same in both forms: keep all, times 2
        return 2 * t

    layer.dropout = nn.Module()
    layer.dropout.forward = drop  # type: ignore[method-assign, assignment]
    q, k, v = layer.qkv(layer.norm1(x)).view(2, 9, 3, 8, 8).permute(2, 0, 3, 1, 4)
    a = drop((q @ k.transpose(2, 3) / 8**0.5).softmax(-1))
    y = x + drop(layer.out((a @ v).transpose(1, 2).reshape(2, 9, 64)))
    y = y + drop(layer.ff2(drop(functional.gelu(layer.ff1(layer.norm2(y))))))
    torch.testing.assert_close(layer.first_token(x), y[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("proj", ["post", "pre"])
@pytest.mark.parametrize("layers", [1, 3])
def test_extractor_equals_its_plain_form(proj: str, layers: int) -> None:
    net, patches = make_extractor(proj=proj, layers=layers), torch.randn(3, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(net(patches), plain(net, patches), rtol=1e-5, atol=1e-5)


def test_default_network_has_the_papers_parameters_and_equals_its_plain_form() -> None:
    torch.manual_seed(0)
    net = Extractor(ExtractorConfig(), patch_px=512).eval()
    assert sum(weight.numel() for weight in net.encoder.parameters()) == 10_696_232
    assert [sum(weight.numel() for weight in layer.parameters()) for layer in net.layers] == [15_744_512] * 2
    patches = torch.randn(1, 3, 512, 512).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert net.tokens(patches).shape == (1, 257, 1536)
        features, expected = net(patches), plain(net, patches)
    assert features.shape == (1, 512)
    assert float((features - expected).abs().max() / expected.abs().max()) < 1e-5


def test_class_token_stands_first_and_has_no_position() -> None:
    net = make_extractor(proj="pre")
    with torch.inference_mode():
        tokens = net.tokens(torch.zeros(2, 3, 96, 96))
    assert tokens.shape == (2, 10, 32)
    assert torch.equal(tokens[1, 0], net.class_token)


@pytest.mark.parametrize("pos", ["sin", "sin2d", "learned"])
def test_tokens_are_row_major_and_carry_their_position(pos: str) -> None:
    net = make_extractor(pos=pos, pool="mean", proj="pre")
    patches = torch.randn(1, 3, 96, 128)[:, :, :, :96]
    with torch.inference_mode():
        cells = net.project_in(net.encoder.forward_features(patches)[0].permute(1, 2, 0))  # (row, column, D)
        code = (net.tokens(patches)[0] - cells.reshape(9, 32)).double()
    expected = {"sin": sinusoid(torch.arange(9), 32), "sin2d": sinusoid_2d(3, 3, 32), "learned": net.position}[pos]
    torch.testing.assert_close(code, expected.double(), rtol=0, atol=1e-5)


def test_two_dimensional_position_tells_rows_from_columns() -> None:
    code = sinusoid_2d(2, 3, 8).view(2, 3, 8)
    assert torch.equal(code[0, 2, :4], code[0, 0, :4])
    assert torch.equal(code[0, 2, 4:], code[1, 2, 4:])
    assert torch.equal(code[1, 0, :4], sinusoid(torch.tensor([1]), 4)[0])


def test_sinusoidal_positions_follow_a_larger_patch_and_learned_ones_refuse_it() -> None:
    with torch.inference_mode():
        assert make_extractor()(torch.zeros(1, 3, 160, 160)).shape == (1, 32)
        with pytest.raises(ValueError, match="9 cells, the patch gives 5x5"):
            make_extractor(pos="learned")(torch.zeros(1, 3, 160, 160))


@pytest.mark.parametrize(
    ("encoder", "options"),
    [("test_resnet", {}), ("test_vit", {"img_size": 96}), ("test_mambaout", {}), ("mobilenetv3_small_050", {})],
)
def test_encoders_of_every_layout_fit(encoder: str, options: dict[str, int]) -> None:
    net = make_extractor(encoder=encoder, encoder_options=options, heads=2)
    with torch.inference_mode():
        features = net(torch.randn(2, 3, 96, 96))
    assert features.shape == (2, 32)
    assert not torch.allclose(features[0], features[1])


def test_a_plain_encoder_is_its_averaged_map() -> None:
    net = make_extractor(layers=0, pool="mean", proj="post")
    patches = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        averaged = net.encoder.forward_features(patches).mean((2, 3)) + net.position.mean(0)
        torch.testing.assert_close(net(patches), net.project_out(averaged), rtol=1e-4, atol=1e-5)


def test_unknown_encoder_is_refused_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"no encoder 'efficientnet_b33'; near it: .*efficientnet_b3"):
        make_extractor(encoder="efficientnet_b33")


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="width 256 of the tokens is not a multiple of 7 heads"):
        make_extractor(heads=7)


def test_gradient_reaches_every_weight() -> None:
    net = make_extractor().train()
    net(torch.randn(2, 3, 96, 96)).square().sum().backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()] == []
