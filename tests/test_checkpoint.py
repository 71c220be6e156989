"""Published checkpoints against plain forms of their networks, and what a checkpoint file may hold."""
import collections
import functools
import io
import os
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision
from conftest import make_checkpoint
from torch import nn
from torch.nn import functional as F

from checkpoint import is_published, load_checkpoint, load_file, load_init, load_network, load_published
from model import METHODS, build_network
from utils import UserError

pytestmark = pytest.mark.usefixtures("short")
WORDS = {"visible": "visible", "infrared": "thermal"}


# ------------------------------------------------------------------------------------- the published networks
def backbone(arch: str) -> nn.Module:
    """A ResNet with stride 1 in its last stage."""
    net = getattr(torchvision.models, arch)(weights=None)
    for layer in net.layer4[0].modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    return net


@functools.cache
def spare(arch: str) -> nn.Module:
    """The ResNet whose layers fill what no forward pass uses."""
    return backbone(arch)


def holder(name: str, arch: str, *used: str) -> nn.Module:
    """A module with a whole ResNet under `name`, of which only the layers in `used` are its own."""
    module, net = nn.Module(), backbone(arch)
    for layer in {name for name, _ in net.named_children()} - {*used}:
        setattr(net, layer, getattr(spare(arch), layer))
    setattr(module, name, net)
    return module


class Pairwise(nn.Module):
    """The non-local block of AGW with its N x N matrix written out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Conv2d(channels, 1, 1))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))
        self.theta = nn.Conv2d(channels, 1, 1)
        self.phi = nn.Conv2d(channels, 1, 1)

    def forward(self, x):
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))  # (B, 1, N) each
        pairs = torch.einsum("bci,bcj->bij", theta, phi) / g.shape[2]
        answers = torch.einsum("bij,bcj->bci", pairs, g)
        return x + self.W(answers.unflatten(2, x.shape[2:]))


class ChannelAttention(nn.Module):
    """gamma A X + X, A the row-wise softmax of max(E) - E."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        rows = x.reshape(*x.shape[:2], -1)
        energy = rows @ rows.transpose(1, 2)
        affinity = (energy.max(2, keepdim=True).values - energy).softmax(2)
        return self.gamma * (affinity @ rows).reshape(x.shape) + x


class Published(nn.Module):
    """What both networks share: stems, BNNeck, and two L2-normalised features for images (B, 3, H, W)."""

    def __init__(self, arch: str, classes: int, *stages: str) -> None:
        super().__init__()
        self.thermal_module = holder("thermal", arch, "conv1", "bn1")
        self.visible_module = holder("visible", arch, "conv1", "bn1")
        self.base_resnet = holder("base", arch, *stages)
        dim = 2048 if arch == "resnet50" else 512
        self.bottleneck = nn.BatchNorm1d(dim)
        self.classifier = nn.Linear(dim, classes, bias=False)

    def stem(self, x, modality):
        net = getattr(getattr(self, f"{WORDS[modality]}_module"), WORDS[modality])
        return F.max_pool2d(F.relu(net.bn1(net.conv1(x))), 3, 2, 1)

    def forward(self, x, modality):
        pooled = self.pooled(x, modality)
        return F.normalize(pooled), F.normalize(self.bottleneck(pooled))


class PublishedAGW(Published):
    """AGW, or its `base` without non-local blocks and with average pooling."""

    def __init__(self, arch: str, classes: int, non_local: bool) -> None:
        super().__init__(arch, classes, "layer1", "layer2", "layer3", "layer4")
        self.non_local = non_local
        self.NL_2 = nn.ModuleList(Pairwise(512) for _ in range(2 * non_local))
        self.NL_3 = nn.ModuleList(Pairwise(1024) for _ in range(3 * non_local))

    def pooled(self, x, modality):
        x = self.stem(x, modality)
        for stage, extra in (("layer1", []), ("layer2", self.NL_2), ("layer3", self.NL_3), ("layer4", [])):
            blocks = getattr(self.base_resnet.base, stage)
            for block, after in zip(blocks, [nn.Identity()] * (len(blocks) - len(extra)) + list(extra)):
                x = after(block(x))
        return ((x ** 3).flatten(2).mean(2) + 1e-12) ** (1 / 3) if self.non_local else x.mean((2, 3))


class PublishedCGRNet(Published):
    """CGRNet as its authors' test code runs it: channel attention, and no graph."""

    def __init__(self, arch: str, classes: int) -> None:
        super().__init__(arch, classes, "layer3", "layer4")
        self.thermal_block = holder("base", arch, "layer1")
        self.visible_block = holder("base", arch, "layer1")
        self.cam1, self.cam2 = ChannelAttention(), ChannelAttention()
        for name in ("local2local", "local2global", "global2local"):  # which no forward pass calls
            unused = ChannelAttention()
            unused.query_conv, unused.key_conv, unused.value_conv = (nn.Conv2d(512, 32, 1) for _ in range(3))
            setattr(self, name, unused)
        self.common_block = holder("base", arch, "layer2")

    def pooled(self, x, modality):
        attention = self.cam1 if modality == "visible" else self.cam2
        x = attention(getattr(self, f"{WORDS[modality]}_block").base.layer1(self.stem(x, modality)))
        deep = self.base_resnet.base
        return deep.layer4(deep.layer3(self.common_block.base.layer2(x))).mean((2, 3))


class PublishedDDAG(Published):
    """DDAG as its test code runs it: features after pooling, and the part feature."""

    def __init__(self, arch: str, classes: int) -> None:
        super().__init__(arch, classes, "layer1", "layer2", "layer3", "layer4")
        dim = self.classifier.in_features
        self.wpa = nn.Module()
        self.wpa.fc1, self.wpa.fc2 = nn.Sequential(nn.Conv2d(dim, dim, 1)), nn.Conv2d(dim, dim, 1)
        self.wpa.fc3 = nn.Conv2d(dim, dim, 1)
        self.wpa.W = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.BatchNorm2d(dim))
        self.wpa.bottleneck, self.wpa.gate = nn.BatchNorm1d(dim), nn.Parameter(torch.rand(3))
        self.classifier1, self.classifier2 = (nn.Linear(dim, classes, bias=False) for _ in range(2))
        for name in ("attention_0", "attention_3", "out_att"):
            head = nn.Module()
            head.W, head.a = nn.Parameter(torch.rand(4, 2)), nn.Parameter(torch.rand(4))
            setattr(self, name, head)

    def forward(self, x, modality):
        base, wpa = self.base_resnet.base, self.wpa
        x = base.layer4(base.layer3(base.layer2(base.layer1(self.stem(x, modality)))))
        stripes = F.adaptive_avg_pool2d(x, (3, 1))
        q, k, v = (layer(stripes)[..., 0] for layer in (wpa.fc1, wpa.fc2, wpa.fc3))  # (B, C, 3)
        attention = torch.einsum("bci,bcj->bij", q, k).softmax(2)
        parts = torch.einsum("bij,bcj,i->bc", attention, v, wpa.gate.softmax(0))
        pooled = x.mean((2, 3))
        return F.normalize(pooled), F.normalize(wpa.bottleneck(parts + self.bottleneck(pooled)))


class PublishedDEEN(Published):
    """DEEN as its test code runs it, an image's three features joined; for RegDB without stage 4."""

    def __init__(self, arch: str, classes: int, regdb: bool) -> None:
        super().__init__(arch, classes, *(f"layer{n}" for n in range(1, 4 if regdb else 5)))
        base = self.base_resnet.base
        widths = [64, *(getattr(base, f"layer{n}")[-1].bn2.num_features for n in range(1, 5))]
        self.blocks = 2 if regdb else 3
        for n in range(1, self.blocks + 1):
            low, high = widths[n - 1], widths[n]
            block = nn.Module()
            block.CNL, block.PNL = nn.Module(), nn.Module()
            for part, inner in ((block.CNL, low), (block.PNL, low // 2)):
                part.g, part.phi = nn.Conv2d(low, inner, 1), nn.Conv2d(low, inner, 1)
                part.theta = nn.Conv2d(high, inner, 1)
                part.W = nn.Sequential(nn.Conv2d(inner, high, 1), nn.BatchNorm2d(high))
            if n > 1:
                block.CNL.phi.stride = block.CNL.W[0].stride = (2, 2)
            setattr(self, f"MFA{n}", block)
        width = widths[self.blocks]
        self.DEE = nn.Module()
        for k in (1, 2):
            for j in (1, 2, 3):
                layer = nn.Conv2d(width, width // 4, 3, padding=j, dilation=j, bias=False)
                setattr(self.DEE, f"FC{k}{j}", layer)
            setattr(self.DEE, f"FC{k}", nn.Conv2d(width // 4, width, 1))
        self.bottleneck = nn.BatchNorm1d(widths[self.blocks + 1])
        self.classifier = nn.Linear(widths[self.blocks + 1], classes, bias=False)

    def attended(self, n, x, before):
        part = getattr(self, f"MFA{n}").CNL
        energy = part.theta(x).flatten(2) @ part.phi(before).flatten(2).transpose(1, 2)
        y = energy / energy.shape[2] @ part.g(before).flatten(2)
        x = part.W(y.view_as(part.g(before))) + x
        part, count, low = getattr(self, f"MFA{n}").PNL, len(x), before.shape[1]
        theta, phi, g = (layer(value).reshape(count, low, -1) for layer, value in (
            (part.theta, x), (part.phi, before), (part.g, before)))
        y = theta.transpose(1, 2) @ phi / phi.shape[2] @ g.transpose(1, 2)
        return part.W(y.transpose(1, 2).reshape(count, -1, *x.shape[2:])) + x

    def forward(self, x, modality):
        x = self.stem(x, modality)
        for n in range(1, self.blocks + 1):
            x = self.attended(n, getattr(self.base_resnet.base, f"layer{n}")(x), x)
        maps = [x]
        for k in (1, 2):
            mean = sum(getattr(self.DEE, f"FC{k}{j}")(x) for j in (1, 2, 3)) / 3
            maps.append(getattr(self.DEE, f"FC{k}")(F.relu(mean)))
        pooled = getattr(self.base_resnet.base, f"layer{self.blocks + 1}")(torch.cat(maps)).mean((2, 3))
        both = [F.normalize(feats).chunk(3) for feats in (pooled, self.bottleneck(pooled))]
        return tuple(torch.cat(copies, 1) / 3 ** 0.5 for copies in both)


class PublishedDNS(Published):
    """DNS as its test code runs it."""

    def __init__(self, arch: str, classes: int) -> None:
        nn.Module.__init__(self)
        self.visible = holder("visible", arch, "conv1", "bn1", "layer1", "layer2")
        self.thermal = holder("thermal", arch, "conv1", "bn1", "layer1", "layer2")
        self.base = holder("base", arch, "layer3", "layer4")
        for branch in (self.visible.visible, self.thermal.thermal):
            del branch.layer3, branch.layer4
        widths = [getattr(self.base.base, f"layer{n}")[-1].bn2.num_features for n in (3, 4)]
        for n, width in zip((3, 4), widths):
            shift, inner = nn.Module(), max(8, width // 32)
            shift.channel_attention = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False),
                                                    nn.BatchNorm2d(inner))
            shift.conv_h, shift.conv_w = (nn.Conv2d(inner, width, 1, bias=False) for _ in range(2))
            setattr(self.base, f"HSS{n}", shift)
        dim = widths[-1]
        self.CSS, self.DD = nn.Module(), nn.Module()
        self.CSS.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(),
                                     nn.Linear(4 * dim, dim), nn.Dropout())
        for name in ("visible_classifier", "infrared_classifier_"):
            setattr(self.DD, name, nn.Linear(dim, classes, bias=False))
        self.bottleneck, self.classifier = nn.BatchNorm1d(dim), nn.Linear(dim, classes, bias=False)

    def shifted(self, n, x):
        part = getattr(self.base, f"HSS{n}")
        rows, columns = x.max(3).values.softmax(2), x.max(2).values.softmax(2)
        z = x + torch.einsum("bch,bcw->bchw", rows, columns)
        means = part.channel_attention(torch.cat([z.mean(3), z.mean(2)], 2)[..., None])
        means = means * F.relu6(means + 3) / 6
        rows, columns = part.conv_h(means[:, :, :x.shape[2]]), part.conv_w(means[:, :, x.shape[2]:])
        return torch.einsum("bchw,bch,bcw->bchw", x, rows[..., 0].sigmoid(), columns[..., 0].sigmoid())

    def pooled(self, x, modality):
        word = WORDS[modality]
        own, base = getattr(getattr(self, word), word), self.base.base
        x = F.max_pool2d(F.relu(own.bn1(own.conv1(x))), 3, 2, 1)
        x = self.shifted(3, base.layer3(own.layer2(own.layer1(x))))
        x = self.shifted(4, base.layer4(x)).relu()
        return ((x ** 3).mean((2, 3)) + 1e-12) ** (1 / 3)


def randomise(net: nn.Module) -> nn.Module:
    """Attention strengths, affine norms, running statistics as no initialisation leaves them; eval mode."""
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 0.7 if isinstance(module, nn.BatchNorm2d) else 0.1
            nn.init.uniform_(module.weight, 0.3, 0.9)
            nn.init.normal_(module.bias, std=0.2)
        elif isinstance(module, ChannelAttention):
            nn.init.uniform_(module.gamma, 0.3, 0.9)
    with torch.no_grad():
        for modality in (*WORDS, *WORDS):
            net.train()(torch.randn(4, 3, 64, 32), modality)
    return net.eval()


def as_file(net: nn.Module, prefix: str = "") -> dict:
    """What the published training code saves."""
    weights = collections.OrderedDict((prefix + name, value) for name, value in net.state_dict().items())
    cmc = np.linspace(0.4, 1, 20)
    return {"net": weights, "cmc": cmc, "mAP": cmc.mean(), "mINP": np.float64(0.25), "epoch": 42}


@pytest.fixture(scope="module")
def cgrnet(short: None) -> PublishedCGRNet:
    return randomise(PublishedCGRNet("resnet18", 206))


@pytest.fixture
def content(cgrnet) -> dict:
    """A CGRNet file whose state dict may be changed."""
    return as_file(cgrnet)


@torch.inference_mode()
def features(net, modality: str):
    images = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(3))
    if isinstance(net, Published):
        return net(images, modality)
    output = net(**{modality: images})
    return F.normalize(output.feats), F.normalize(output.neck)


def difference(ours, theirs) -> float:
    """Largest difference of a feature, relative to the largest entry."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs))


def assert_same_features(ours, theirs) -> None:
    for modality in WORDS:
        assert difference(features(ours, modality), features(theirs, modality)) < 1e-5
    # each stream has its own weights
    assert difference(features(theirs, "visible"), features(theirs, "infrared")) > 1e-2


# --------------------------------------------------------------------------------------------------- features
def test_agw_gives_the_features_of_the_published_network(tmp_path):
    theirs = randomise(PublishedAGW("resnet50", 395, True))
    torch.save(as_file(theirs), tmp_path / "a.t", _use_new_zipfile_serialization=False)  # as torch did then
    content = load_file(tmp_path / "a.t", "--resume")
    assert is_published(content["net"])
    ours, facts, report = load_published(content, "a.t")
    assert not ours.training
    assert facts == {"method": "agw", "arch": "resnet50", "dataset": "sysu"}
    assert "visible_module.visible.layer4, visible_module.visible.fc" in report[1]
    assert_same_features(ours, theirs)
    blocks, theirs.NL_2, theirs.NL_3 = features(theirs, "visible"), nn.ModuleList(), nn.ModuleList()
    assert difference(features(theirs, "visible"), blocks) > 1e-2  # the blocks do something here


def test_cgrnet_gives_the_features_of_the_published_network(content, cgrnet):
    assert is_published(content) and is_published(content["net"])
    ours, facts, _ = load_published(content, "a.t")
    assert facts == {"method": "cgrnet", "arch": "resnet18", "dataset": "regdb"}
    assert ours.graph is None
    assert_same_features(ours, cgrnet)
    before = features(ours, "infrared")
    with torch.no_grad():
        ours.similarity["infrared"].gamma.zero_()
    assert difference(features(ours, "infrared"), before) > 1e-3  # the attention does something here


@pytest.mark.parametrize("make, method, dataset, changed", [
    (lambda: PublishedAGW("resnet18", 12, False), "base", {}, {}),  # 12 classes say nothing of the data set
    (lambda: PublishedDDAG("resnet18", 395), "ddag", {"dataset": "sysu"}, {}),
    (lambda: PublishedDEEN("resnet18", 713, regdb=False), "deen", {"dataset": "llcm"}, {"expand_after": 3}),
    (lambda: PublishedDEEN("resnet18", 206, regdb=True), "deen", {"dataset": "regdb"}, {"expand_after": 2}),
    (lambda: PublishedDNS("resnet18", 395), "dns", {"dataset": "sysu"}, {})])
def test_other_methods_give_the_features_of_the_published_networks(make, method, dataset, changed):
    theirs = randomise(make())
    ours, facts, report = load_published(as_file(theirs, "module."), "a.t")
    assert facts == {"method": method, "arch": "resnet18", **dataset}
    assert changed.items() <= ours.method.parts.items()
    assert report[2] == "missing: none"
    assert_same_features(ours, theirs)
    with pytest.raises(UserError, match=f"^--resume a.t: has an unexpected other.weight .* of {method} on"):
        load_published({"net": {**theirs.state_dict(), "other.weight": torch.zeros(1)}}, "a.t")


# ------------------------------------------------------------------------------------------------------- keys
def test_reports_used_unused_and_missing_keys(content):
    net, _, (used, unused, missing) = load_published(content, "a.t")
    count = len(net.state_dict())
    assert used == f"used: {count} keys (cgrnet, resnet18, 206 classes)"
    assert unused.startswith(f"unused: {len(content['net']) - count} keys (")
    for module in ("visible_module.visible.layer1", "base_resnet.base.layer2", "common_block.base.conv1",
                   "local2global", "visible_block.base.fc"):
        assert f"{module}, " in unused or f"{module})" in unused
    for module in ("visible_module.visible.conv1", "base_resnet.base.layer3", "cam1"):
        assert module not in unused
    assert missing == "missing: none"


def test_unused_keys_may_be_missing_or_hold_anything_and_counts_of_batches_may_be_missing(content, cgrnet):
    net = {name: value for name, value in content["net"].items() if not name.endswith("num_batches_tracked")}
    del net["visible_module.visible.fc.weight"], net["base_resnet.base.layer1.0.conv1.weight"]
    net["local2local.gamma"] = torch.full((1,), float("nan"))
    net["visible_block.base.layer3.0.conv1.weight"] = torch.zeros(2)
    ours, _, report = load_published({"net": net}, "a.t")
    count = sum(name.endswith("num_batches_tracked") for name in ours.state_dict())
    assert count and report[2] == f"missing: {count} keys that testing does not read (num_batches_tracked)"
    assert_same_features(ours, cgrnet)


def test_what_is_not_published():
    for method in METHODS:
        assert not is_published(build_network(method, "resnet18", 2).state_dict())
    assert not any(map(is_published, (None, [], {}, {"conv1.weight": 1, 3: 4})))


@pytest.mark.parametrize("name, value, message", [
    ("thermal_block.base.layer1.0.bn2.running_var", None, "lacks thermal_block.base.layer1.0.bn2"),
    ("cam2.", None, "lacks cam2.gamma"), ("classifier.", None, "lacks classifier.weight"),
    ("common_block.", None, r"lacks common_block.base.layer2.0.conv1.weight \(\d+ such\)"),
    ("cam1.gamma", torch.zeros(2), r"cam1.gamma has shape \(2,\), \(1,\) expected"),
    ("classifier.weight", torch.zeros(206), "classifier.weight has shape"),
    ("bottleneck.weight", torch.full((512,), float("nan")), "bottleneck.weight holds NaN"),
    ("common_block.base.layer2.0.bn1.weight", [1.0], "common_block.base.layer2.0.bn1.weight is a list"),
    # the third block of a ResNet-34
    ("base_resnet.base.layer3.2.conv1.weight", torch.zeros(1), "has an unexpected base_resnet.base.layer3.2"),
    ("MFA1.conv.weight", torch.zeros(1), "unexpected MFA1.conv.weight .* the weights of cgrnet on resnet18"),
    ("thermal_block.base.layer2.0.extra.weight", torch.zeros(1), "unexpected thermal_block.base.layer2"),
])
def test_refuses_weights_that_would_give_other_features(content, name, value, message):
    """None: all weights whose names begin so are missing."""
    content["net"] = {own: weight for own, weight in content["net"].items()
                      if value is not None or not own.startswith(name)}
    content["net"] |= {} if value is None else {name: value}
    with pytest.raises(UserError, match=f"a.t: .*{message}"):
        load_published(content, "a.t")


@pytest.mark.parametrize("wrapper", ["", "state_dict"])
def test_resume_and_init_read_the_same_files(wrapper, tmp_path, cgrnet):
    weights = as_file(cgrnet, "module.")["net"]
    torch.save({wrapper: weights, "epoch": 42} if wrapper else weights, tmp_path / "a.t")
    assert_same_features(load_network(tmp_path / "a.t")[0], cgrnet)
    net = build_network("cgrnet", "resnet18", 3)
    line = load_init(net, str(tmp_path / "a.t"), "sysu", 1)
    assert re.search(r"\d+ of \d+ tensors and 100 % of the backbone's parameters", line)
    assert "left out: classifier.weight" in line
    ours, theirs = net.streams["infrared"].layer1, cgrnet.thermal_block.base.layer1
    assert torch.equal(ours[0].conv1.weight, theirs[0].conv1.weight)


# --------------------------------------------------------------------------------------- what a file may hold
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_numpy_numbers_and_arrays_are_read_under_both_names_of_their_module(tmp_path, core):
    values = {"cmc": np.arange(6, dtype=np.float32), "mAP": np.float64(0.5), "mINP": np.float16(0.25),
              "epoch": np.int64(3), "flag": np.bool_(True),
              "matrix": np.asfortranarray(np.arange(6).reshape(2, 3)), "dtype": np.dtype("float32")}
    file = io.BytesIO()
    torch.save(values, file, _use_new_zipfile_serialization=False)
    pickled, names = re.subn(rb"numpy\._?core(?=\.multiarray\n)", core, file.getvalue())
    assert names
    (tmp_path / "a.t").write_bytes(pickled)
    found = load_file(tmp_path / "a.t", "--resume")
    assert list(found) == list(values)
    for name, value in values.items():
        assert type(found[name]) is type(value)
        np.testing.assert_array_equal(found[name], value)


def test_a_file_of_the_middle_of_an_epoch_begins_that_epoch_again(tmp_path, capsys):
    content = load_file(make_checkpoint(tmp_path / "a.t"), "--resume")
    torch.save({**content, "step": 3, "sums": {"id": 2.0}, "seconds": 1.5}, tmp_path / "middle.t")
    checkpoint = load_checkpoint(tmp_path / "middle.t")
    assert checkpoint.epoch == 1 and checkpoint.net.keys() == content["net"].keys()
    assert capsys.readouterr().err == (
        f"warning: --resume {tmp_path}/middle.t: written after 3 steps of epoch 1, which begins again\n")


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, marker) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old format"])
def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, zipped):
    marker, path = tmp_path / "ran", tmp_path / "a.t"
    torch.save({"net": {"visible_module.visible.conv1.weight": torch.zeros(1)}, "mAP": Bomb(marker)}, path,
               _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError,
                       match=rf"--resume .*a.t: refused, it refers to {os.system.__module__}\.system,"):
        load_file(path, "--resume")
    torch.save({"cmc": np.array([Bomb(marker), None], object)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="--resume .*a.t: "):
        load_file(path, "--resume")
    (tmp_path / "bare.t").write_bytes(pickle.dumps({"net": Bomb(marker)}, pickle.HIGHEST_PROTOCOL * zipped))
    with pytest.raises(UserError, match="--resume .*bare.t: "):
        load_file(tmp_path / "bare.t", "--resume")
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()  # it was armed


def test_arrays_of_other_things_than_numbers_are_refused(tmp_path):
    for value in (np.array([{"a": 1}, None], object), np.zeros(2, [("a", "O")]), np.array(["text"])):
        torch.save({"cmc": value}, tmp_path / "a.t")
        with pytest.raises(UserError, match="--resume .*a.t: "):
            load_file(tmp_path / "a.t", "--resume")
