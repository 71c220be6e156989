"""export.py: what it writes agrees with torch for all methods and backbones; a wrong file does not get by."""
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import make_network, save_image

import checkpoint
import export
from checkpoint import Checkpoint
from datasets.types import MODALITIES, ImageSpec
from features import Extraction, as_network, extract
from retrieval import onnx_model
from retrieval.gallery import read_gallery
from retrieval.onnx_model import Facts
from utils import UserError

HEIGHT, WIDTH = 32, 16


def can_export() -> bool:
    """Whether requirements-export.txt is installed."""
    try:
        export.require_packages()
    except UserError:
        return False
    return True


pytestmark = [pytest.mark.usefixtures("short"),
              pytest.mark.skipif(not can_export(), reason="needs requirements-export.txt")]


def save_checkpoint(path, net, method="cgrnet"):
    facts = {"dataset": "regdb", "method": method, "arch": "resnet18", "img_w": WIDTH, "img_h": HEIGHT,
             "trial": 1}
    checkpoint.save_checkpoint(path, Checkpoint(net.state_dict(), facts, 4, optimiser={}))
    return path


def facts_of(method="cgrnet", arch="resnet18", modality="visible", **others):
    facts = Facts(onnx_model.FORMAT, method, arch, modality, "regdb", "ab" * 32, HEIGHT, WIDTH, False,
                  "float32")
    return dataclasses.replace(facts, **others)


def features_of(net, paths, modality):
    settings = Extraction(ImageSpec(HEIGHT, WIDTH), 4, 0)
    found = extract(as_network(net, modality, settings), paths, settings)
    return found.pool, found.bnneck


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A checkpoint, its network, its exported files, and images."""
    folder = tmp_path_factory.mktemp("world")
    net, paths = make_network("cgrnet"), [str(folder / f"images/{number}.png") for number in range(6)]
    for number in range(len(paths)):
        save_image(folder / f"images/{number}.png", [number])
    for modality in MODALITIES:
        export.write_network(folder / f"{modality}.onnx", net, facts_of(modality=modality))
    return folder, net, paths


# -------------------------------------------------------------------------------------------------- agreement
# each class of networks but `world`'s once, and each backbone
@pytest.mark.parametrize("method, arch", [
    ("base", "resnet50_ibn"), ("agw", "resnet50"), ("strong", "mobilenet_v2"),
    *((method, "resnet18") for method in ("cgrnet-strong", "ddag", "deen", "dns", "hct"))])
def test_every_network_and_every_backbone_agrees_with_torch(method, arch, tmp_path):
    net = make_network(method, arch)
    # instance normalisation of maps of a few places magnifies the differences of two float32
    size = (144, 72) if arch == "resnet50_ibn" else (HEIGHT, WIDTH)
    facts = facts_of(method, arch, "infrared", uint8=arch != "resnet18", height=size[0], width=size[1])
    export.write_network(tmp_path / "infrared.onnx", net, facts)
    images = export.made_images(3, *size)
    found = onnx_model.load(tmp_path / "infrared.onnx").features(images)
    for mine, theirs in zip(found, export.torch_features(net, images, "infrared")):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_the_file_holds_no_batch_normalisation_and_says_what_it_is(world):
    import onnx
    model = onnx.load(world[0] / "visible.onnx")
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    assert [output.name for output in model.graph.output] == ["bnneck", "pool"]
    assert onnx_model.load(world[0] / "visible.onnx").facts == facts_of()


# -------------------------------------------------------------------------------------------------- the check
def test_the_check_refuses_a_wrong_network(world, monkeypatch):
    folder, net, _ = world
    export.verify(folder / "visible.onnx", net, facts_of())
    right, other = onnx_model.OnnxModel.features, onnx_model.load(folder / "infrared.onnx")
    for wrong in (lambda model, images: right(model, images[:, :, ::-1]),  # mirrored
                  lambda model, images: right(model, np.roll(images, 1, 1)),  # another image
                  lambda model, images: right(other, images),
                  lambda model, images: [np.nan * feats for feats in right(model, images)],
                  lambda model, images: [1.01 * feats for feats in right(model, images)]):
        monkeypatch.setattr(onnx_model.OnnxModel, "features", wrong)
        with pytest.raises(UserError, match="visible.onnx: not torch's features"):
            export.verify(folder / "visible.onnx", net, facts_of())


# ----------------------------------------------------------------------------------------------- command line
def test_the_script_writes_networks_config_and_card(script, world):
    path = save_checkpoint(script.cwd / "x.t", world[1])
    threshold = {"threshold": 0.5, "true_accept_rate": 0.25, "impostor_pairs": 12345}
    record = {"checkpoint": {"sha256": [export.sha256(path)]}, "protocol": {"name": "RegDB, v2i"},
              "extras": [], "std": {},
              "mean": {"bnneck": {"rank-1": 0.5, "rank-10": 0.75, "mAP": 0.25, "mINP": 0.125}},
              "calibration": "RegDB, v2i, trial 1", "thresholds": {"bnneck": {"v2i": {"0.001": threshold}}}}
    (script.cwd / "results").mkdir()
    (script.cwd / "results/old.json").write_text("{}")
    (script.cwd / "results/x.json").write_text(json.dumps(record))
    done = script("export.py", "x.t", "--out", "model", "--uint8", "--half")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    names = ["config.json", "infrared.onnx", "model_card.md", "visible.onnx"]
    assert sorted(path.name for path in (script.cwd / "model").iterdir()) == names
    config = json.loads((script.cwd / "model/config.json").read_text())
    card = (script.cwd / "model/model_card.md").read_text()
    assert config["input"]["shape"] == ["batch", HEIGHT, WIDTH, 3] and config["precision"] == "half"
    assert config["tested"]["thresholds"] == record["thresholds"] and config["sha256"] == export.sha256(path)
    for name in MODALITIES:
        assert config["files"][f"{name}.onnx"] == export.sha256(script.cwd / f"model/{name}.onnx")
    for word in ("cgrnet", "regdb", config["sha256"], "50.00%", "0.5000", "12,345", "RegDB, v2i, trial 1",
                 "Limits of use"):
        assert word in card


def test_errors_are_one_line_and_leave_nothing(script, world):
    save_checkpoint(script.cwd / "x.t", world[1])
    (script.cwd / "other.json").write_text('{"checkpoint": {"sha256": ["00"]}}')
    for words, said in ((("y.t",), "checkpoint y.t: no such file"),
                        (("x.t", "--results", "other.json"), "no record of a test of this checkpoint")):
        done = script("export.py", *words)
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
        assert said in done.stderr and not (script.cwd / "model").exists()


def test_a_network_whose_features_are_all_alike_cannot_be_checked_and_leaves_the_old_files(script):
    net = make_network("base")
    for value in net.shared["layer4"].state_dict().values():
        value.zero_()
    net.shared["layer4"][0].downsample[1].bias.data.fill_(1.0)
    save_checkpoint(script.cwd / "x.t", net, "base")
    (script.cwd / "model").mkdir()
    (script.cwd / "model/visible.onnx").write_text("old")
    done = script("export.py", "x.t")
    assert done.returncode == 2 and done.stderr.count("\n") <= 2, done.stderr
    assert "visible.onnx: cannot be checked, as torch's features are the same with" in done.stderr
    assert [path.name for path in (script.cwd / "model").iterdir()] == ["visible.onnx"]
    assert (script.cwd / "model/visible.onnx").read_text() == "old"


def test_old_torch_and_missing_packages_are_one_line(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.1+cpu")
    with pytest.raises(UserError,
                       match=r"^torch 2.8.1\+cpu found, 2.9 or later expected: .* baddbmm; run: pip install"):
        export.require_packages()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError,
                       match="onnxscript does not load .*; run: pip install -r requirements-export.txt"):
        export.require_packages()


# ---------------------------------------------------------------------------------------------- without torch
def test_embed_needs_neither_torch_nor_torchvision(world, script, tmp_path):
    folder, net, paths = world
    for name in ("torch", "torchvision"):
        (tmp_path / "none" / name).mkdir(parents=True)
        (tmp_path / "none" / name / "__init__.py").write_text("raise ImportError('there is none')\n")
    words = ("embed.py", *paths, "--resume", folder / "visible.onnx", "--out", "found.npz", "--modality")
    done = script(*words, "visible", env={"PYTHONPATH": str(tmp_path / "none")}, fresh=True)
    assert done.returncode == 0, done.stderr
    found = read_gallery(script.cwd / "found.npz")
    for kind, theirs in zip(("pool", "bnneck"), features_of(net, paths, "visible")):
        np.testing.assert_allclose(getattr(found, kind), theirs, atol=1e-4)
    assert found.record.checkpoint == facts_of().sha256
    done = script(*words, "infrared")
    assert done.returncode == 2 and "--modality infrared: the checkpoint" in done.stderr


def test_files_that_are_no_networks_of_ours_are_one_line(world, tmp_path, monkeypatch):
    import onnx
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    shutil.copy(world[0] / "visible.onnx", tmp_path / "bare.onnx")
    model = onnx.load(tmp_path / "bare.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    for name, words in (("none.onnx", "no such file"), ("noise.onnx", "as a network of export.py"),
                        ("bare.onnx", "as a network of export.py .KeyError: 'format'")):
        with pytest.raises(UserError, match=words):
            onnx_model.load(tmp_path / name)
    monkeypatch.setattr("onnxruntime.__version__", "1.17.3")
    with pytest.raises(UserError, match="onnxruntime 1.17.3 found, 1.22 or later"):
        onnx_model.load(tmp_path / "noise.onnx")
    onnx_model.load(world[0] / "visible.onnx")  # which it would read
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError,
                       match="onnxruntime does not load .*; run: pip install -r requirements-export.txt"):
        onnx_model.load(world[0] / "visible.onnx")
