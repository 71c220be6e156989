"""The demonstration: a small course from random weights, in this process."""
from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

import demo
from datasets.types import ImageSpec
from utils import UserError

SMALL = ("--ids", "16", "--images", "2", "--gpu", "cpu")


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """Render in this process: two more would take longer to start than to render so few images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def played(short, tmp_path_factory):
    """What a small course without first weights prints, and its folder."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        def unreachable(arch: str) -> None:
            raise UserError("no network")

        patch.setattr("backbones.fetch_imagenet", unreachable)
        trainings = tuple((name, method, 1, lr) for name, method, _, lr in demo.SHORT_RANDOM.trainings)
        patch.setattr(demo, "SHORT_RANDOM",
                      replace(demo.SHORT_RANDOM, spec=ImageSpec(32, 16), trainings=trainings))
        printed = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        demo.main([*SMALL, "--out", str(out)])
    return "\n".join(printed), out


def test_it_says_first_what_it_does_and_how_long_it_takes(played):
    printed, out = played
    first, second, third = printed.splitlines()[:3]
    assert first.startswith("No first weights, so all is trained from random ones") and "no network" in first
    assert second == f"Renders 16 persons into {out}, trains base in SYSU-MM01's layout, cgrnet in " \
                     "SYSU-MM01's layout, tests, and searches."
    assert third.startswith("This machine takes ") and third.endswith(" minutes in all.")


def test_it_ends_with_the_table_the_pictures_the_page_and_three_commands(played):
    printed, out = played
    *_, table, places, commands = printed.split("\n\n")
    assert [line.split()[2] for line in table.splitlines()[1:]] == ["chance", "base", "cgrnet"]
    for name in ("pedestrians.png", "sysu_base/ranking.png", "sysu_cgrnet/ranking.png", "search/hits.html"):
        assert str(out / name) in places and (out / name).stat().st_size
    assert [line.split()[1] for line in commands.splitlines()[1:4]] == ["test.py", "export.py", "test.py"]
    assert commands.endswith(" minutes")


def test_the_second_training_begins_with_the_weights_of_the_first(played):
    printed, out = played
    base, cgrnet = [line for line in printed.splitlines() if line.startswith("$ python train.py")]
    first, = (out / "models" / "sysu_base").glob("*_last.t")
    assert "--pretrained none" in base and f"--init {first}" in cgrnet


def test_data_of_other_settings_are_refused(played):
    _, out = played
    with pytest.raises(UserError, match=f"^--out {out}: data of other settings found there"):
        demo.main([*SMALL, "--data-only", "--data-seed", "1", "--out", str(out)])


def test_data_alone_in_all_layouts(tmp_path):
    demo.main(["--full", "--data-only", "--ids", "12", "--images", "1", "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {"SYSU-MM01", "RegDB", "LLCM", "demo.json",
                                                          "pedestrians.png"}
    with Image.open(tmp_path / "pedestrians.png") as sheet:
        assert sheet.height == 3 * 4 * 172
