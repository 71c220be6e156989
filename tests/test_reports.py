"""What users of this field and of its libraries report elsewhere, through the real command line."""
from __future__ import annotations

import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
from conftest import ROOT, SMALL, make_llcm
from test_faults import RUN, make_world

from model import build_network

DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
exec(sys.argv.pop(1))
import importlib.util
sys.argv.pop(0)
spec = importlib.util.spec_from_file_location("script", {str(ROOT)!r} + "/" + sys.argv[0])
script = importlib.util.module_from_spec(spec)
sys.modules["script"] = script
spec.loader.exec_module(script)
script.run(script.main)
"""


@pytest.fixture(scope="module")
def world(once):
    """The small data sets, arrays and run of `test_faults`, only read."""
    folder = once("world", make_world)
    return SimpleNamespace(sysu=folder / "SYSU-MM01", regdb=folder / "RegDB", arrays=folder / "arrays",
                           last=folder / f"save_model/{RUN}_last.t", best=folder / f"save_model/{RUN}_best.t")


@pytest.fixture
def changed(tmp_path):
    """Run a script with something changed before: changed(source, "train.py", *words)."""
    def call(source, *words, **options):
        (tmp_path / "cwd").mkdir(exist_ok=True)
        return scripts.run(["-c", DRIVER, source, *words], tmp_path / "cwd", **options)
    return call


@pytest.fixture
def train(script, world):
    """Train on RegDB for an epoch or so."""
    return lambda *words, **options: script("train.py", "--dataset", "regdb", "--data-path", world.regdb,
                                            "--epochs", 1, "--method", "base", *SMALL, *words, **options)


def errors(done):
    return [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]


def words(world, *more):
    return ("train.py", "--dataset", "regdb", "--data-path", world.regdb, "--method", "base", *SMALL, *more)


def test_non_local_blocks_from_scratch_keep_to_a_tenth():
    """At the full rate, their cubic product outgrows the running statistics behind it within an epoch."""
    net = build_network("agw", "resnet18", 3)
    rates = {id(p): group["lr"] for group in net.parameter_groups(0.1, pretrained=False)
             for p in group["params"]}
    tenths = [rates[id(p)] for p in net.non_local.parameters()]
    assert tenths == pytest.approx([0.01] * len(tenths))
    assert rates[id(net.shared["layer4"][0].conv1.weight)] == 0.1


def test_a_broken_matplotlib_is_found_before_a_test_and_out_stays_away(world, changed, tmp_path):
    source = ("for name in [n for n in sys.modules if n.startswith('matplotlib')]:\n"
              "    del sys.modules[name]\n"
              "sys.modules['matplotlib'] = None")
    test = ("test.py", "--resume", world.last, "--data-path", world.regdb, "--gpu", "cpu")
    done = changed(source, *test, "--out", "found")
    assert done.returncode == 2 and len(errors(done)) == 1, done.stderr
    assert "--out: Matplotlib, which draws the figures, does not load" in errors(done)[0]
    assert not (tmp_path / "cwd/found").exists()
    done = changed(source, "search.py", "a.npz", "b.npz", "--out", "found")
    assert done.returncode == 2, done.stderr
    assert "Matplotlib, which draws the figures, does not load" in errors(done)[0]
    assert changed(source, *test).returncode == 0  # draws nothing


# ----------------------------------------------------------------------- silent replacement, misleading words
def test_arrays_of_other_code_are_not_replaced_without_a_word(script, world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    np.save(root / "train_rgb_resized_img.npy", np.zeros(3))
    pre = ("pre_process_sysu.py", "--data-path", root, "--img_w", 16, "--img_h", 32, "--workers", 0)
    elsewhere = script(*pre, "--arrays", tmp_path / "arrays")
    assert elsewhere.returncode == 0 and "will be replaced" not in elsewhere.stderr
    assert len(np.load(root / "train_rgb_resized_img.npy")) == 3
    done = script(*pre)
    assert done.returncode == 0
    assert re.search("train_rgb_resized_img.npy: without .*, so made by other code or cut short; "
                     r"will be replaced \(--arrays DIR", done.stderr)
    assert "will be replaced" not in script(*pre).stderr


def test_arrays_in_a_folder_of_their_own(script, world, tmp_path):
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    train = ("train.py", "--data-path", root, "--epochs", 1, *SMALL, "--arrays", tmp_path / "arrays")
    lacking = script(*train)
    command = re.search(r"--arrays \S+: no train_resized_img.json in it; run: python (.*)",
                        errors(lacking)[0])[1].split()
    assert lacking.returncode == 2 and script(*command).returncode == 0
    assert not list(root.glob("*.npy")) and len(list((tmp_path / "arrays").glob("*.npy"))) == 4
    other = make_llcm(tmp_path / "LLCM")
    mixed = script("pre_process_llcm.py", "--data-path", other, "--arrays", tmp_path / "arrays")
    assert mixed.returncode == 2 and "of another data set found" in errors(mixed)[0], mixed.stderr
    for image in root.glob("cam1/0001/*"):  # training reads none: marks come from the manifest
        os.chmod(image, 0)
    assert script(*train).returncode == 0
    refused = script("train.py", "--dataset", "regdb", "--data-path", world.regdb, "--arrays", "x")
    assert "--arrays x belongs to SYSU-MM01 and LLCM, but the data set is regdb" in refused.stderr


def test_an_image_of_another_format_is_named(script, world, tmp_path):
    from PIL import Image
    root = shutil.copytree(world.sysu, tmp_path / "SYSU-MM01")
    Image.new("RGB", (24, 48)).save(root / "cam1/0001/0001.jpg", "GIF")
    done = script("pre_process_sysu.py", "--data-path", root, "--workers", 0)
    assert done.returncode == 2
    assert re.search(r"0001.jpg: a GIF file \(JPEG, PNG, BMP, TIFF, WEBP are read\) found", done.stderr)


def test_one_person_and_regdb_with_one_trial(script, world, tmp_path):
    root = shutil.copytree(world.regdb, tmp_path / "RegDB")
    for trial in range(2, 11):
        for path in (root / "idx").glob(f"*_{trial}.txt"):
            path.unlink()
    checked = script("data_manager.py", root)
    assert checked.returncode == 0 and checked.stdout.splitlines()[-1].startswith("usable")
    assert "2, 3, 4, 5, 6, 7, 8, 9, 10: others do without" in checked.stdout
    for name in ("visible", "thermal"):
        path = root / f"idx/train_{name}_1.txt"
        path.write_text("".join(line for line in path.open() if line.endswith(" 0\n")))
    done = script("train.py", "--dataset", "regdb", "--data-path", root, *SMALL)
    assert errors(done) == ["train.py: error: --batch-size 2: 1 training persons found, at least as many as "
                            "the batch has identities expected; add persons to the training lists, as a "
                            "triplet needs two"]
