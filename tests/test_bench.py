"""Every benchmark runs on a tiny configuration and writes finite figures."""
import json

import pytest

from tools import bench

TINY = ("--arch", "resnet18", "--img_h", "32", "--img_w", "16", "--batch-size", "2", "--num_pos", "2",
        "--repeats", "1", "--warmup", "0", "--workers", "0", "--gpu", "cpu")


@pytest.fixture(autouse=True)
def small(short, monkeypatch):
    for name, value in (("STEPS", {"cpu": 1}), ("BATCHES", {"cpu": 2}), ("TEST_IMAGES", {"cpu": 6}),
                        ("QUERIES", 40), ("GALLERY", 80), ("ROWS", 600), ("PERSONS", 24),
                        ("PREPROCESSED", 40), ("PRODUCT", {"cpu": 64})):
        monkeypatch.setattr(bench, name, value)


@pytest.mark.parametrize("name", [name for name in bench.BENCHMARKS if name != "onnx"])
def test_benchmark_yields_finite_ratios(name, tmp_path, capsys):
    path = tmp_path / "bench.json"
    bench.main([name, "--json", str(path), *TINY, "--method", "cgrnet", "--augment", "strong"])
    report = json.loads(path.read_text(), parse_constant=pytest.fail)  # of NaN and infinity
    assert report["results"]
    printed = capsys.readouterr().out
    for result in report["results"]:
        assert result["name"].split()[0] == name and result["name"] in printed
        assert name == "params" or 0 < result["ratio_min"] <= result["ratio"] <= result["ratio_max"]


def test_a_plain_item_goes_through_the_augmentations_of_its_modality(monkeypatch):
    monkeypatch.setitem(bench.plain.AUGMENTATIONS, "mark",
                        lambda image, modality: image * 0 + (1 if modality == "visible" else 2))
    images, sampler = bench.make_training(bench.parse_arguments(["input", *TINY]), 1)
    names = {"visible": ("standard", "mark"), "infrared": ("standard", "mark")}
    ((visible, infrared, _),) = bench.plain.training_loader(images, sampler, 0, names)
    assert (visible == 1).all() and (infrared == 2).all()


def test_both_sides_run_in_turn_and_medians_of_neighbours_are_taken(monkeypatch):
    calls, clock = [], iter([0, 0, 0, 0, 0, 4, 10, 12, 20, 26, 30, 33, 40, 49, 50, 51])
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    args = bench.parse_arguments(["step", "--repeats", "3", "--warmup", "1", "--gpu", "cpu"])
    bench.measure(args, "x", lambda: calls.append("a"), lambda: calls.append("b"), images=12)
    (found,) = args.results
    assert calls == ["a", "b"] * 4
    assert (found["baseline"]["seconds"], found["variant"]["seconds"], found["ratio"]) == (6, 2, 2)
    assert (found["ratio_min"], found["ratio_max"], found["variant"]["images_per_s"]) == (2, 9, 6)
