"""Recipes: defaults of other flags in one word."""
import sys

import pytest
import torch
from conftest import SMALL, make_regdb

import options
import train
from utils import UserError, parse_given

SIZED = ("optim", "schedule", "epochs", "augment", "img_h", "img_w")


def parse(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, words)])
    args, given = parse_given(options.train_parser())
    options.apply_recipe(args, given)
    return args


def test_paper_is_what_the_flags_declare(monkeypatch):
    args = parse(monkeypatch)
    assert args.recipe == "paper" and args == parse(monkeypatch, "--recipe", "paper")
    assert [getattr(args, name) for name in SIZED] == ["sgd", "step", 80, None, 288, 144]


@pytest.mark.parametrize("recipe", ["strong", "short"])
def test_a_recipe_sets_all_defaults_and_each_stays_open_to_its_flag(monkeypatch, recipe):
    row = options.RECIPES[recipe]
    assert set(row) == set(SIZED)
    plain = vars(parse(monkeypatch))
    assert vars(parse(monkeypatch, "--recipe", recipe)) == {**plain, "recipe": recipe, **row}
    for name, word, value in (("optim", "adam", "adam"), ("schedule", "step", "step"), ("epochs", "7", 7),
                              ("augment", "erase,grey", "erase,grey"), ("img_h", "96", 96),
                              ("img_w", "48", 48)):
        found = vars(parse(monkeypatch, "--recipe", recipe, "--" + name, word))
        assert found == {**plain, "recipe": recipe, **row, name: value}


@pytest.mark.parametrize("method", ["caj", "strong", "cgrnet-strong"])
def test_a_method_with_augmentations_of_its_own_keeps_them(monkeypatch, method):
    assert parse(monkeypatch, "--recipe", "strong", "--method", method).augment is None
    assert parse(monkeypatch, "--recipe", "strong", "--method", method, "--augment", "grey").augment == "grey"


@pytest.mark.parametrize("words", ["grey", "strong", "standard,erase", "exchange,radiance,mix,channel"])
def test_augmentations_are_named_by_words(monkeypatch, words):
    assert parse(monkeypatch, "--augment", words).augment == words


def test_runs_of_other_augmentations_have_files_of_their_own(monkeypatch):
    strong = ("--recipe", "strong", "--method", "strong", "--lr", "0.1")
    rows = [(), ("--augment", "standard"), ("--augment", "standard,channel,grey")]
    assert [train.run_name(parse(monkeypatch, *strong, *row)) for row in rows] == [
        f"sysu_strong_p4_n8_lr_0.1_seed_0_384x192_cosine_epochs_120{end}"
        for end in ("", "_standard", "_standard-channel-grey")]


def test_log_and_checkpoint_name_the_recipe_and_a_run_goes_on_with_it(tmp_path, script):
    data = make_regdb(tmp_path / "RegDB")
    train = ("train.py", "--dataset", "regdb", "--data-path", data, *SMALL)
    done = script(*train, "--recipe", "short", "--method", "strong", "--epochs", 1)
    assert done.returncode == 0, done.stderr
    (log,), (last,) = (script.cwd.glob(names) for names in ("log/regdb_log/*.txt", "save_model/*_last.t"))
    assert "recipe short" in log.read_text().splitlines()[0]
    args = torch.load(last, weights_only=True)["args"]
    assert (args["recipe"], args["schedule"], args["epochs"], args["augment"]) == ("short", "cosine", 1, None)
    on = ("train.py", "--data-path", data, "--gpu", "cpu", "--resume", last, "--epochs", 2)
    done = script(*on, "--recipe", "paper")
    assert done.returncode == 2 and "--recipe paper: the checkpoint" in done.stderr
    assert done.stderr.count("\n") == 1
    assert script(*on).returncode == 0
    args = torch.load(last, weights_only=True)["args"]
    assert (args["recipe"], args["schedule"], args["epochs"]) == ("short", "cosine", 2)


@pytest.mark.parametrize("method", ["caj", "cgrnet-strong"])
def test_methods_train_and_test(tmp_path, script, method):
    data = make_regdb(tmp_path / "RegDB")
    done = script("train.py", "--dataset", "regdb", "--data-path", data, *SMALL,
                  "--method", method, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    (last,) = (script.cwd / "save_model").glob("*_last.t")
    done = script("test.py", "--data-path", data, "--gpu", "cpu", "--resume", last, "--feature", "sum",
                  "--flip", "--rerank", "k-reciprocal")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].endswith(" + flip + feature sum + k-reciprocal re-ranking")


def test_an_unknown_augmentation_is_refused():
    with pytest.raises((SystemExit, UserError)):
        options.train_parser().parse_args(["--augment", "strong,odd"])
