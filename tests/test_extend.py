"""What people add, each from outside as a row of its table, and a step trained with it (CONTRIBUTING.md)."""
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, make_regdb, save_image
from torch import nn

import backbones
import data_loader
import engine
import loss
import train
from backbones import STAGES, Backbone
from data_manager import DATASETS
from datasets.types import DIRECTIONS, DataSet, Images, Search
from model import METHODS, Loss, View, build_network

pytestmark = pytest.mark.usefixtures("short")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train for an epoch through train.py's main, in this process, where the tables have been added to."""
    def call(*words):
        data = make_regdb(tmp_path / "RegDB")
        monkeypatch.chdir(tmp_path)
        flags = ("train.py", "--dataset", "regdb", "--data-path", data, "--epochs", 1, *SMALL, *words)
        monkeypatch.setattr("sys.argv", list(map(str, flags)))
        monkeypatch.setattr("signal.signal", lambda *_: None)  # leave pytest's own handlers alone
        train.main()
        (last,) = (tmp_path / "save_model").glob("*_last.t")
        return torch.load(last, weights_only=True)
    return call


class Centres(nn.Module):
    """A loss that learns: the squared distance of features to their person's centre."""

    def __init__(self, num_classes: int, dim: int, scale: float) -> None:
        super().__init__()
        self.centres, self.scale = nn.Parameter(torch.zeros(num_classes, dim)), scale

    def forward(self, output, labels):
        return self.scale * (output.feats - self.centres[labels]).square().mean()


def test_a_loss_with_parameters_and_one_that_is_a_function(trained, monkeypatch):
    monkeypatch.setitem(loss.LOSSES, "centres", Centres)
    monkeypatch.setitem(loss.LOSSES, "size",
                        lambda output, labels, power: output.feats.abs().pow(power).mean())
    monkeypatch.setitem(METHODS, "mine", dataclasses.replace(
        METHODS["base"], losses={"id": Loss(), "size": Loss(0.1, {"power": 2}),
                                 "centres": Loss(0.5, {"scale": 2.0})}))
    content = trained("--method", "mine")
    centres = content["criterion"]["learnt.centres.centres"]
    assert centres.shape == (4, 512) and centres.abs().sum() > 0
    assert content["optimiser"]["param_groups"][-1]["initial_lr"] == 0.02
    net = build_network("mine", "resnet18", 4)
    criterion = loss.Criterion(net.method.losses, 4, net.dim)
    optimiser = engine.build_optimiser(net, criterion, 0.02, False, "sgd")
    criterion.load_state_dict(content["criterion"])
    engine.load_optimiser(optimiser, content["optimiser"])
    assert torch.equal(criterion.learnt["centres"].centres, centres)


def test_a_method_with_a_third_view_and_an_augmentation(trained, monkeypatch):
    seen = []

    def grey(images, modality, generator):
        seen.append((modality, tuple(images.shape), generator.device.type))
        return images.mean(1, keepdim=True).expand_as(images)

    monkeypatch.setitem(data_loader.AUGMENTATIONS, "grey", grey)
    views = {"visible": View("visible"), "grey": View("visible", ("standard", "grey")),
             "infrared": View("infrared")}
    monkeypatch.setitem(METHODS, "three", dataclasses.replace(METHODS["cgrnet"], views=views))
    content = trained("--method", "three")
    assert set(seen) == {("visible", (4, 3, 32, 16), "cpu")}
    assert content["args"]["method"] == "three"


class Small(nn.Module):
    """A backbone of one's own, or of another library: anything that splits into a stem and four stages."""

    def __init__(self):
        super().__init__()
        sizes = ((3, 8, 4), (8, 8, 1), (8, 16, 2), (16, 16, 2), (16, 32, 1))
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())
                                    for inputs, outputs, stride in sizes)


def test_a_backbone_of_ones_own(trained, monkeypatch, tmp_path):
    def split(network):
        stem, *stages = network.layers
        return {"stem": stem}, dict(zip(STAGES, stages))

    row = Backbone(split, (8, 16, 16, 32), build=Small, stem_width=8)
    monkeypatch.setitem(backbones.BACKBONES, "small", row)
    torch.save(Small().state_dict(), tmp_path / "small.pth")
    content = trained("--arch", "small", "--method", "deen", "--pretrained", tmp_path / "small.pth")
    assert content["net"]["classifier.weight"].shape == (4, 32)


@pytest.mark.parametrize("arch", backbones.BACKBONES)
def test_widths_are_those_of_the_stages_and_the_last_keeps_its_resolution(arch):
    net = build_network("base", arch, 3).eval()
    with torch.inference_mode():
        x = net.streams["visible"](torch.zeros(1, 3, 64, 32))
        for stage, width, size in zip(STAGES, backbones.BACKBONES[arch].widths,
                                      ((16, 8), (8, 4), (4, 2), (4, 2))):
            x = net.run_stage(stage, net.shared[stage], x)
            assert x.shape == (1, width, *size), stage


class Flat(DataSet):
    """Images rgb/PERSON_SHOT.png and ir/PERSON_SHOT.png; persons of odd numbers are for training."""

    name, title, path, direction = "flat", "Flat", "data/flat", "v2i"
    folders, flags, published = ("rgb", "ir"), ("first",), {"training persons": 500}
    arguments = {"train_split": ("first",)}

    def add_flags(self, parser, script):
        if script == "train":
            parser.add_argument("--first", type=int, default=0, help="flat: least person to train on")

    def images(self, copy, split, trial):
        sides = {}
        for modality, folder in zip(("visible", "infrared"), self.folders):
            found = [(path, int(Path(path).name[0]), 1) for path in copy.image_files(copy.root / folder)]
            sides[modality] = Images.of([row for row in found if row[1] % 2 == (split == "train")], modality)
        return sides

    def source(self, split, trial):
        return "rgb"

    def train_split(self, root, trial=1, first=0):
        return super().train_split(root)

    def searches(self, root, *, direction, trials):
        query, gallery = (self.test_images(root)[modality] for modality in DIRECTIONS[direction])
        return [Search(query, gallery, trial, f"Flat, {direction}") for trial in trials]


def test_a_data_set_is_trained_on_tested_and_checked(script, tmp_path, monkeypatch):
    monkeypatch.setitem(DATASETS, "flat", Flat())
    root = tmp_path / "flat"
    for person in range(1, 7):
        for shot in range(2):
            for folder in ("rgb", "ir"):
                save_image(root / folder / f"{person}_{shot}.png", [person, shot, len(folder)])
    done = script("train.py", "--dataset", "flat", "--data-path", root, *SMALL, "--epochs", 1, "--first", 1)
    assert done.returncode == 0, done.stderr
    assert "3 training persons found, 500 published" in done.stderr
    last, = (script.cwd / "save_model").glob("flat_*_last.t")
    done = script("test.py", "--resume", last, "--data-path", root, "--gpu", "cpu", "--out", "found")
    assert done.returncode == 0, done.stderr
    record = json.loads((script.cwd / "found/results.json").read_text())
    assert record["protocol"]["name"] == "Flat, v2i"
    refused = script("train.py", "--dataset", "sysu", "--first", 1)
    assert "--first 1 belongs to Flat, but the data set is sysu; leave it out" in refused.stderr
    done = script("data_manager.py", root)
    assert done.returncode == 0 and "training persons 3 500 differs".split() in [
        line.split() for line in done.stdout.splitlines()]
