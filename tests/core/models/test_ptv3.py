# SPDX-License-Identifier: Apache-2.0
"""Point Transformer V3 against its definition, on tiny networks."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pcseg_core.models.curves import Curve
from pcseg_core.models.patches import cube_bits, patches_of
from pcseg_core.models.ptv3 import Ptv3, Ptv3Config
from pcseg_core.models.ptv3_layers import Block, Blocks, PatchAttention, Projection, Up
from pcseg_core.models.student import StudentConfig
from pcseg_core.sparse import SparseTensor

CURVES: tuple[Curve, ...] = ("z", "hilbert")
TINY = Ptv3Config(depths=(2, 1), channels=(8, 12), heads=(2, 3), patch=16, curves=CURVES)
PAPER = Ptv3Config(
    version=1,
    depths=(1, 2, 1),
    channels=(8, 8, 12),
    heads=(2, 2, 3),
    decoder_depths=(1, 2),
    decoder_channels=(6, 8),
    decoder_heads=(2, 2),
    patch=16,
    curves=CURVES,
)
XYZ = [("x", 30.0), ("y", 30.0), ("z", 2.0)]


def network(config: Ptv3Config = TINY) -> Ptv3:
    """A network whose layers all matter."""
    torch.manual_seed(0)
    made = Ptv3(XYZ, 2, config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return made


def sweep(seed: int, voxels: int, reach: int, batch: int = 0) -> tuple[Tensor, Tensor]:
    """Coordinates [batch, x, y, z] and inputs of occupied voxels."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-reach, reach, (voxels, 3), generator=generator).unique(dim=0)
    coords = torch.cat([torch.full((len(cells), 1), batch), cells], 1)
    return coords, torch.randn(len(cells), 3, generator=generator)


def joined(*sweeps: tuple[Tensor, Tensor]) -> SparseTensor:
    coords, feats = (torch.cat(parts) for parts in zip(*sweeps, strict=True))
    return SparseTensor(coords, feats)


def test_attention_of_one_patch_is_dense_attention() -> None:
    torch.manual_seed(0)
    coords, _ = sweep(0, 30, 4)
    attention, x = PatchAttention(12, 3), torch.randn(len(coords), 12)
    coords = coords - coords.amin(0)
    (patches,) = patches_of(coords, ["hilbert"], 1024, cube_bits(coords))
    query, key, value = attention.qkv(x).view(len(x), 3, 3, 4).permute(1, 2, 0, 3)
    weights = (query @ key.transpose(1, 2) / 2).softmax(-1)
    expected = attention.out((weights @ value).permute(1, 0, 2).reshape(len(x), 12))
    torch.testing.assert_close(attention(x, patches), expected)


def test_pooling_takes_the_maximum_of_each_cell() -> None:
    torch.manual_seed(0)
    x = joined(sweep(0, 60, 3), sweep(1, 40, 2, batch=1))
    projection = Projection(3, 5, 2)
    cells = x.coords.clone()
    cells[:, 1:] = cells[:, 1:].div(2, rounding_mode="floor")
    coarse, parents = cells.unique(dim=0, return_inverse=True)
    found = projection.pool(x, parents)
    assert torch.equal(found.coords, coarse.int())
    linear = projection.linear(x.feats)
    largest = torch.stack([linear[parents == k].amax(0) for k in range(len(coarse))])
    torch.testing.assert_close(found.feats, torch.nn.functional.gelu(projection.norm(largest)))


@pytest.mark.parametrize("config", [TINY, PAPER])
def test_sweeps_of_a_batch_equal_each_alone(config: Ptv3Config) -> None:
    """Of other extents, the second one smaller than a patch."""
    net = network(config)
    sweeps = [sweep(0, 200, 9), sweep(1, 12, 2, batch=1), sweep(2, 60, 30, batch=3)]
    together = net.features(joined(*sweeps))
    alone = [net.features(joined((c * torch.tensor([0, 1, 1, 1]), f))) for c, f in sweeps]
    assert float(together.detach().std()) > 0.1
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_the_grid_begins_at_the_corner_of_the_sweep() -> None:
    net, (coords, feats) = network(), sweep(0, 100, 5)
    moved = coords + torch.tensor([0, 7, -3, 1])
    torch.testing.assert_close(
        net.features(joined((moved, feats))), net.features(joined((coords, feats)))
    )


def test_features_are_those_of_all_stages() -> None:
    net, x = network(), joined(sweep(0, 100, 5))
    fine, coarse = net.levels(x)
    found, parents = net.features(x), coarse.parents
    assert net.feature_channels == found.shape[1] == 20 and parents is not None
    assert torch.equal(found[:, :8], fine.x.feats)
    assert torch.equal(found[:, 8:], coarse.x.feats[parents])
    cells = (x.coords - x.coords.amin(0))[:, 1:].div(2, rounding_mode="floor")
    assert torch.equal(parents, cells.unique(dim=0, return_inverse=True)[1])


@pytest.mark.parametrize("version", [1, 2])
def test_the_decoder_adds_both_grids_and_runs_its_blocks(version: int) -> None:
    """In version 1 the position of the first block sees the finer features alone."""
    changes = {
        "version": version,
        "depths": (1, 1),
        "channels": (8, 12),
        "heads": (2, 3),
        "decoder_depths": (2,),
        "decoder_channels": (6,),
        "decoder_heads": (2,),
    }
    net, x = network(PAPER.model_copy(update=changes)), joined(sweep(0, 100, 5))
    fine, coarse = net.levels(x)
    assert coarse.parents is not None and net.feature_channels == 6
    up, blocks = net.up[0], net.decoder[0]
    assert isinstance(up, Up) and isinstance(blocks, Blocks)
    skip, below = up.skip(fine.x.feats), up.coarse(coarse.x.feats)
    total = fine.x.replace(skip + below[coarse.parents])
    first, second = (block for block in blocks if isinstance(block, Block))
    feats = total.feats + first.position(fine.x.replace(skip) if version == 1 else total)
    feats = feats + first.attention(first.norm1(feats), fine.patches[0])
    feats = feats + first.mlp(first.norm2(feats))
    expected = second(fine.x.replace(feats), fine.patches[1])
    torch.testing.assert_close(net.features(x), expected.feats)


def test_curves_of_coarser_grids_follow_the_finest_in_version_1() -> None:
    """The largest coordinate is 6: its cube has 3 bits, and the halved one, up to 3, has 3 too."""
    cells = torch.cartesian_prod(*[torch.arange(7)] * 3)
    x = joined((torch.cat([torch.zeros(len(cells), 1, dtype=torch.int64), cells], 1), cells / 7))
    for version, bits in ((1, 2), (2, 3)):
        net = network(PAPER.model_copy(update={"version": version, "patch": 1000}))
        coarse = net.levels(x)[1]
        coords = coarse.x.coords
        (expected,) = patches_of(coords, ["hilbert"], 1000, [bits])
        assert torch.equal(coarse.patches[1].rows[0], expected.rows[0])
        (other,) = patches_of(coords, ["hilbert"], 1000, [5 - bits])
        assert not torch.equal(coarse.patches[1].rows[0], other.rows[0])


def test_centered_inputs_do_not_depend_on_the_origin() -> None:
    coords, feats = sweep(0, 60, 5)
    far = feats + torch.tensor([3.0, -2.0, 0.5])
    for centered in (True, False):
        net = network(TINY.model_copy(update={"centered": centered}))
        near, moved = (net.features(joined((coords, f))) for f in (feats, far))
        assert torch.allclose(near, moved, atol=1e-3) == centered
    net = network(TINY.model_copy(update={"centered": True}))
    inside = net._centered(feats, coords[:, 0])
    assert torch.allclose(inside[:, :2].amin(0), -inside[:, :2].amax(0), atol=1e-6)
    assert float(inside[:, 2].min()) == 0.0


@pytest.mark.parametrize("config", [TINY, PAPER])
def test_every_parameter_learns(config: Ptv3Config) -> None:
    net, x = network(config).train(), joined(sweep(0, 200, 6), sweep(1, 50, 6, batch=1))
    net(x).feats.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


@pytest.mark.parametrize(
    "values, told",
    [
        ({"depths": (1, 1)}, "one value for each stage"),
        ({"heads": (5, 6, 12, 24, 32)}, "multiples of heads"),
        ({"depths": (3, 3, 0, 12, 3)}, "depths"),
        ({"decoder_depths": (1, 1, 1, 1)}, "equal length"),
        (
            {"decoder_depths": (1,), "decoder_channels": (8,), "decoder_heads": (2,)},
            "one grid less",
        ),
        ({"curves": ("peano",)}, "hilbert"),
    ],
)
def test_wrong_architectures_are_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Ptv3Config(**values)


def test_positions_are_required() -> None:
    with pytest.raises(ValidationError, match="takes positions from its inputs"):
        StudentConfig(network="ptv3", inputs=("z", "intensity"))
    with pytest.raises(ValidationError, match="ptv3: of the network 'ptv3', but"):
        StudentConfig(ptv3=TINY)
