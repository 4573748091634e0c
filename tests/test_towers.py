"""The towers: unit vectors, scaling kept with the weights, files that load without anything else."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from configs.artifacts import ArtifactError
from train.towers import Dropout, TwoTowers, embed, embed_tags, load_towers, save_towers


@pytest.fixture
def towers():
    torch.manual_seed(0)
    return TwoTowers(5, 7, hidden_dim=6, embed_dim=4, feature_dropout=0.5, hidden_dropout=0.5).eval()


def test_embeddings_are_unit_vectors(towers):
    lengths = towers.image(torch.randn(9, 7)).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(9))


def test_scores_are_cosines_of_tags_in_rows_and_images_in_columns(towers):
    tags, images = torch.randn(2, 5), torch.randn(3, 7)
    scores = towers(tags, images)
    one = torch.nn.functional.cosine_similarity(towers.tag(tags[1:2]), towers.image(images[2:3]))
    assert scores.shape == (2, 3)
    assert scores[1, 2].item() == pytest.approx(one.item(), abs=1e-6)


def test_a_tower_by_hand():
    towers = TwoTowers(1, 1, hidden_dim=2, embed_dim=2)
    with torch.no_grad():
        for tensor in towers.tag.parameters():
            tensor.zero_()
        towers.tag.hidden.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        towers.tag.out.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        towers.tag.out.bias.copy_(torch.tensor([0.0, 4.0]))
    # 1 -> hidden (1, 0) after relu -> (3, 4) -> (0.6, 0.8)
    torch.testing.assert_close(towers.tag(torch.tensor([[1.0]])), torch.tensor([[0.6, 0.8]]))


def test_without_an_activation_the_hidden_layer_keeps_negative_values():
    assert isinstance(TwoTowers(1, 1, activation="none").tag.activation, torch.nn.Identity)


def test_scaling_gives_rows_mean_zero_and_overall_spread_one(towers):
    rows = torch.randn(100, 7) * 3 + 5
    towers.image.scale_by(rows)
    scaled = (rows - towers.image.centre) / towers.image.spread
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(7), atol=1e-5, rtol=0)
    assert scaled.square().mean().item() == pytest.approx(1, abs=1e-5)


def test_scaling_by_equal_rows_does_not_divide_by_zero(towers):
    towers.image.scale_by(torch.ones(4, 7))
    assert torch.isfinite(towers.image(torch.ones(2, 7))).all()


def test_float16_features_are_computed_in_float32(towers):
    rows = torch.randn(3, 7).half()
    torch.testing.assert_close(towers.image(rows), towers.image(rows.float()))


def test_embedding_by_chunks_is_embedding_at_once(towers):
    rows = torch.randn(10, 7)
    with torch.inference_mode():
        torch.testing.assert_close(embed(towers.image, rows, chunk=3), towers.image(rows))


def test_saved_towers_give_the_same_scores_without_dropout(towers, tmp_path):
    towers.image.scale_by(torch.randn(20, 7) + 2)
    save_towers(towers.train(), tmp_path / "towers.safetensors")
    loaded = load_towers(tmp_path / "towers.safetensors")
    tags, images = torch.randn(3, 5), torch.randn(4, 7)
    np.testing.assert_array_equal(loaded(tags, images).detach(), towers.eval()(tags, images).detach())


def test_equal_towers_are_equal_bytes(towers, tmp_path):
    contents = set()
    for number in range(20):  # five entries of metadata in an order of chance would differ at once
        save_towers(towers, tmp_path / str(number))
        contents.add((tmp_path / str(number)).read_bytes())
    assert len(contents) == 1


def test_the_activation_is_saved_with_the_weights(tmp_path):
    save_towers(TwoTowers(2, 2, activation="none"), tmp_path / "t")
    assert isinstance(load_towers(tmp_path / "t").tag.activation, torch.nn.Identity)


def test_towers_load_without_lightning():
    code = "import sys, train.towers; sys.exit('pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("content", [b"", b"junk", b"\x80\x04cos\nsystem\n(S'echo'\ntR."])
def test_a_file_that_holds_no_towers_is_refused_with_its_path(tmp_path, content):
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"t' holds no towers"):
        load_towers(tmp_path / "t")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="holds no towers"):
        load_towers(tmp_path / "none")


def test_weights_of_another_shape_than_the_file_says_are_refused(tmp_path, towers):
    shape = json.dumps(towers.shape | {"hidden_dim": 9})
    save_file(towers.state_dict(), tmp_path / "t", metadata={"shape": shape})
    with pytest.raises(ArtifactError, match="size mismatch"):
        load_towers(tmp_path / "t")


@pytest.mark.parametrize(
    "boast", [{"hidden_dim": 2**40}, {"depth": 2**40}, {"embed_dim": -1}, {"depth": "2"}, {"x": 1}]
)
def test_a_file_that_boasts_of_a_shape_is_refused_before_memory_is_taken(tmp_path, towers, boast):
    save_file(towers.state_dict(), tmp_path / "t", metadata={"shape": json.dumps(towers.shape | boast)})
    with pytest.raises(ArtifactError, match="holds no towers"):
        load_towers(tmp_path / "t")


def test_loaded_towers_can_be_trained_on(tmp_path, towers):
    save_towers(towers, tmp_path / "t")
    loaded = load_towers(tmp_path / "t")
    assert all(weight.requires_grad and weight.device.type == "cpu" for weight in loaded.parameters())


@pytest.mark.parametrize(("depth", "layers"), [(1, []), (2, [6]), (4, [6, 6, 6])])
@pytest.mark.parametrize("normalisation", ["none", "layer"])
def test_depth_counts_linear_layers_and_is_saved_with_the_weights(depth, layers, normalisation, tmp_path):
    towers = TwoTowers(5, 7, hidden_dim=6, embed_dim=4, depth=depth, normalisation=normalisation).eval()
    linear = [each for each in towers.image.modules() if isinstance(each, torch.nn.Linear)]
    norms = [each for each in towers.image.modules() if isinstance(each, torch.nn.LayerNorm)]
    assert [each.out_features for each in linear] == [*layers, 4]
    assert len(norms) == (len(layers) if normalisation == "layer" else 0)
    save_towers(towers, tmp_path / "t")
    rows = torch.randn(3, 7)
    torch.testing.assert_close(load_towers(tmp_path / "t").image(rows), towers.image(rows))


def test_a_tower_of_one_layer_is_linear_before_its_length_is_taken():
    towers = TwoTowers(2, 2, embed_dim=2, depth=1)
    with torch.no_grad():
        towers.tag.out.weight.copy_(torch.tensor([[-3.0, 0.0], [0.0, 4.0]]))
        towers.tag.out.bias.zero_()
    torch.testing.assert_close(towers.tag(torch.tensor([[1.0, 1.0]])), torch.tensor([[-0.6, 0.8]]))


def test_a_hidden_layer_is_normalised_before_its_activation():
    tower = TwoTowers(4, 2, hidden_dim=8, embed_dim=8, normalisation="layer").tag
    seen = []
    tower.activation.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    tower(torch.randn(5, 4) * 100)
    torch.testing.assert_close(seen[0].mean(dim=1), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0].var(dim=1, unbiased=False), torch.ones(5), atol=1e-3, rtol=0)


def test_a_file_of_plain_towers_is_described_as_before_there_were_other_kinds(towers):
    assert set(towers.shape) == {"tag_dim", "image_dim", "hidden_dim", "embed_dim", "activation"}
    assert {name.split(".")[1] for name in towers.state_dict()} == {"centre", "spread", "hidden", "out"}


@pytest.fixture
def with_residuals():
    towers = TwoTowers(1, 1, hidden_dim=2, embed_dim=2, residual_tags=["cat", "dog"]).eval()
    with torch.no_grad():
        for tensor in towers.tag.parameters():
            tensor.zero_()
        towers.tag.out.bias.copy_(torch.tensor([2.0, 0.0]))  # every word vector ends at (1, 0)
        towers.residual.copy_(torch.tensor([[0.0, 1.0], [-1.0, 1.0]]))
    return towers


def test_a_residual_is_added_to_what_the_tower_makes_of_the_word_vector(with_residuals):
    embeddings = embed_tags(with_residuals, ["dog", "unseen", "cat"], torch.ones(3, 1))
    half = 0.5**0.5
    torch.testing.assert_close(embeddings, torch.tensor([[0.0, 1.0], [1.0, 0.0], [half, half]]))


def test_residuals_are_found_by_the_tags_name_in_a_file_of_their_own(with_residuals, tmp_path):
    save_towers(with_residuals, tmp_path / "t")
    loaded = load_towers(tmp_path / "t")
    tags, vectors = ["unseen", "dog", "cat", "dog"], torch.randn(4, 1)
    expected = embed_tags(with_residuals, tags, vectors)
    torch.testing.assert_close(embed_tags(loaded, tags, vectors, chunk=3), expected)
    assert loaded.residual_rows(tags).tolist() == [-1, 1, 0, 1]


def test_residuals_start_at_zero(towers):
    torch.manual_seed(0)
    residual = TwoTowers(5, 7, hidden_dim=6, embed_dim=4, residual_tags=["a", "b"]).eval()
    vectors = torch.randn(2, 5)
    torch.testing.assert_close(embed_tags(residual, ["a", "b"], vectors), embed(towers.tag, vectors))


def test_tags_of_towers_without_residuals_are_embedded_by_their_vectors_alone(towers):
    vectors = torch.randn(10, 5)
    np.testing.assert_array_equal(embed_tags(towers, ["a"] * 10, vectors), embed(towers.tag, vectors))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_a_share_and_scales_the_rest(share, dtype):
    torch.manual_seed(0)
    values = Dropout(share)(torch.ones(1001, 101, dtype=dtype)).double()
    kept = values[values != 0]
    assert (values == 0).double().mean().item() == pytest.approx(share, abs=0.006)  # four standard deviations
    assert kept.unique().tolist() == pytest.approx([1 / (1 - share)], rel=5e-3)
    neighbours = (values[:, 1:] == 0) & (values[:, :-1] == 0)
    assert neighbours.double().mean().item() == pytest.approx(share**2, abs=0.01)


def test_dropout_drops_the_gradient_of_what_it_drops():
    torch.manual_seed(0)
    inputs = torch.ones(7, 3, requires_grad=True)
    values = Dropout(0.5)(inputs)
    values.sum().backward()
    assert torch.equal(inputs.grad, values.detach())


def test_dropout_does_nothing_in_evaluation_or_without_a_share():
    inputs = torch.randn(4, 4)
    assert Dropout(0.5).eval()(inputs) is inputs
    assert torch.equal(Dropout(0.0)(inputs), inputs)
